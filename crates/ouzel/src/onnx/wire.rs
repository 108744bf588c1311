//! Reads ONNX files without holding their weights in memory.
//!
//! The walker goes through the few messages that tensors lie in: model, graph, node, attribute. Where it meets the
//! elements of a large tensor it steps over them and writes down instead, in ONNX's own words for external data, that
//! they lie in this very file. What is left is small and is decoded by `prost`, one field of the graph at a time, so
//! that errors say where in the file they are.

use super::foreign;
use super::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto, data_type};
use super::stored::{Body, DataFile, Source, Stored, external_key};
use crate::error::{Context, Error, Result, bail};
use crate::tensor::Tensor;
use bytes::Bytes;
use prost::Message;
use std::fs::File;
use std::io::{BufReader, Cursor, ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Elements of at least so many bytes stay in the file.
const THRESHOLD: u64 = 1024;

/// Messages nested deeper than this are refused, as by `prost`.
const DEEPEST: usize = 100;

/// A model as its file has it, large tensors left where they lie.
pub(crate) struct ParsedModel {
    /// The model. Large tensors look like external data; [`stored`](Self::stored) finds their elements.
    pub(crate) model: ModelProto,
    pub(super) source: Source,
}

impl ParsedModel {
    /// The tensor that a message of this model describes, be it an initializer or an attribute.
    pub(crate) fn stored(&self, tensor: &TensorProto) -> Result<Stored> {
        Stored::new(tensor, &self.source)
    }
}

/// Reads the model in a file. The file stays open while tensors of the model are in use.
pub(crate) fn read_path(path: &Path) -> Result<ParsedModel> {
    let metadata = path.metadata().map_err(|error| Error::io("open", path, error))?;
    if metadata.is_dir() {
        bail!(model, "{} is {}", path.display(), foreign::describe_folder(path));
    }
    let mut file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let folder = path.parent().map(Path::to_owned);
    let read = || {
        if !metadata.is_file() {
            // A pipe or the like cannot be read twice.
            return read_body(read_all(&mut file)?, folder);
        }
        let model = read_model(BufReader::with_capacity(1 << 16, &file), metadata.len())?;
        let body = Body::File(Arc::new(DataFile::open(path, file, metadata.len())));
        Ok(ParsedModel { model, source: Source { body, folder } })
    };
    read().context(|| path.display())
}

/// Reads a model from memory. Tensors share the bytes.
pub(crate) fn read_bytes(bytes: Bytes) -> Result<ParsedModel> {
    read_body(bytes, None)
}

/// Reads a model from a stream, such as standard input, into memory.
pub(crate) fn read_reader(mut reader: impl Read) -> Result<ParsedModel> {
    read_body(read_all(&mut reader)?, None)
}

/// Reads a message that holds nothing but a tensor, as test data of ONNX is stored; with its name, which may be empty.
pub(crate) fn read_tensor(bytes: &[u8]) -> Result<(String, Tensor)> {
    let tensor =
        TensorProto::decode(bytes).map_err(|error| Error::model(format!("not a tensor: {error}")))?;
    let source = Source { body: Body::Memory(Bytes::new()), folder: None };
    let read = Stored::new(&tensor, &source)?.load()?;
    Ok((tensor.name, read))
}

fn read_all(reader: &mut impl Read) -> Result<Bytes> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|error| Error::io("read", "the model", error))?;
    Ok(bytes.into())
}

fn read_body(bytes: Bytes, folder: Option<PathBuf>) -> Result<ParsedModel> {
    let model = read_model(Cursor::new(&bytes), bytes.len() as u64)?;
    Ok(ParsedModel { model, source: Source { body: Body::Memory(bytes), folder } })
}

fn read_model(mut input: impl Read + Seek, length: u64) -> Result<ModelProto> {
    if length == 0 {
        bail!(model, "not an ONNX model: it is empty");
    }
    let mut head = Vec::new();
    (&mut input)
        .take(foreign::HEAD as u64)
        .read_to_end(&mut head)
        .and_then(|_| input.rewind())
        .map_err(|error| Error::io("read", "the model", error))?;
    if let Some((what, remedy)) = foreign::recognize(&head, length) {
        bail!(model, "not an ONNX model, but {what}: {remedy}");
    }
    Walker { input, at: 0 }.model(length)
}

/// The messages that the walker goes into.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
}

impl Kind {
    /// What the field holds, if the walker goes into it.
    fn child(self, field: u32) -> Option<Self> {
        match (self, field) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Graph, 1) => Some(Self::Node),
            (Self::Node, 5) => Some(Self::Attribute),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) => Some(Self::Tensor),
            _ => None,
        }
    }
}

/// What stands before each value: which field it is, and how it is written.
#[derive(Clone, Copy)]
struct Key {
    field: u32,
    wire: Wire,
    /// Where the key begins.
    start: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

/// Goes through a file.
struct Walker<R> {
    input: R,
    /// The next byte.
    at: u64,
}

impl<R: Read + Seek> Walker<R> {
    fn model(&mut self, end: u64) -> Result<ModelProto> {
        let mut model = ModelProto::default();
        let mut field = Vec::new();
        while self.at < end {
            let key = self.key(end)?;
            if let (Some(Kind::Graph), Wire::Bytes) = (Kind::Model.child(key.field), key.wire) {
                let end = self.length(key, end)?;
                let graph = model.graph.get_or_insert_with(GraphProto::default);
                while self.at < end {
                    let key = self.key(end)?;
                    field.clear();
                    self.field(Kind::Graph, key, end, 1, &mut field)?;
                    merge(graph, &field, key)?;
                }
            } else {
                field.clear();
                self.field(Kind::Model, key, end, 0, &mut field)?;
                merge(&mut model, &field, key)?;
            }
        }
        if model.graph.is_none() {
            bail!(model, "not an ONNX model: it has no graph");
        }
        Ok(model)
    }

    /// Copies the field whose key has been read, large tensors inside it replaced.
    fn field(&mut self, kind: Kind, key: Key, end: u64, depth: usize, out: &mut Vec<u8>) -> Result<()> {
        put_key(out, key);
        match key.wire {
            Wire::Varint => put_varint(out, self.varint(end)?),
            Wire::Fixed64 => self.fixed(8, end, out)?,
            Wire::Fixed32 => self.fixed(4, end, out)?,
            Wire::Bytes => {
                let end = self.length(key, end)?;
                match kind.child(key.field) {
                    None => {
                        put_varint(out, end - self.at);
                        self.copy(end - self.at, out)?;
                    }
                    Some(_) if depth >= DEEPEST => {
                        bail!(
                            model,
                            "not an ONNX model: nested deeper than {DEEPEST} messages at byte {}",
                            key.start
                        );
                    }
                    Some(child) => {
                        let mut message = Vec::new();
                        match child {
                            Kind::Tensor => self.tensor(end, &mut message)?,
                            _ => {
                                while self.at < end {
                                    let key = self.key(end)?;
                                    self.field(child, key, end, depth + 1, &mut message)?;
                                }
                            }
                        }
                        put_varint(out, message.len() as u64);
                        out.extend(message);
                    }
                }
            }
        }
        Ok(())
    }

    /// Copies a tensor, but steps over its elements if they are large and little-endian.
    fn tensor(&mut self, end: u64, out: &mut Vec<u8>) -> Result<()> {
        const DATA_TYPE: u32 = 2;
        const FLOAT_DATA: u32 = 4;
        const RAW_DATA: u32 = 9;
        const DOUBLE_DATA: u32 = 10;
        const EXTERNAL_DATA: u32 = 13;
        const DATA_LOCATION: u32 = 14;

        let mut external = Vec::new();
        let mut is_external = false;
        let mut element_type = 0;
        // The field, the first byte and the length of the elements that are stepped over.
        let mut left: Option<(Key, u64, u64)> = None;
        let mut n_data = 0;
        while self.at < end {
            let key = self.key(end)?;
            match (key.field, key.wire) {
                (FLOAT_DATA | RAW_DATA | DOUBLE_DATA, Wire::Bytes) => {
                    let length = self.length(key, end)? - self.at;
                    n_data += usize::from(length > 0);
                    if length >= THRESHOLD && left.is_none() {
                        left = Some((key, self.at, length));
                        self.skip(length)?;
                    } else {
                        put_key(out, key);
                        put_varint(out, length);
                        self.copy(length, out)?;
                    }
                }
                (DATA_TYPE | DATA_LOCATION, Wire::Varint) => {
                    let value = self.varint(end)?;
                    let out = if key.field == DATA_TYPE {
                        element_type = value as i32;
                        &mut *out
                    } else {
                        is_external = value as i32 == TensorProto::EXTERNAL;
                        &mut external
                    };
                    put_key(out, key);
                    put_varint(out, value);
                }
                (EXTERNAL_DATA, _) => self.field(Kind::Tensor, key, end, 0, &mut external)?,
                _ => self.field(Kind::Tensor, key, end, 0, out)?,
            }
        }
        let Some((key, offset, length)) = left else {
            out.extend(external);
            return Ok(());
        };
        let start = key.start;
        if n_data > 1 || is_external {
            bail!(
                model,
                "the tensor whose elements are at byte {start} stores elements in another place too"
            );
        }
        let fits = match key.field {
            FLOAT_DATA => element_type == data_type::FLOAT,
            DOUBLE_DATA => element_type == data_type::DOUBLE,
            _ => true,
        };
        if !fits {
            let field = if key.field == FLOAT_DATA { "float_data" } else { "double_data" };
            let found = data_type::name(element_type);
            bail!(model, "the tensor whose elements are at byte {start} has {field}, but is of {found}");
        }
        TensorProto {
            external_data: vec![
                StringStringEntryProto::new(external_key::LOCATION, ""),
                StringStringEntryProto::new(external_key::OFFSET, offset.to_string()),
                StringStringEntryProto::new(external_key::LENGTH, length.to_string()),
            ],
            data_location: TensorProto::EXTERNAL,
            ..TensorProto::default()
        }
        .encode(out)
        .expect("invariant: a vector grows as needed");
        Ok(())
    }

    fn key(&mut self, end: u64) -> Result<Key> {
        let start = self.at;
        let key = self.varint(end)?;
        let field = u32::try_from(key >> 3).ok().filter(|field| (1..1 << 29).contains(field));
        let Some(field) = field else {
            bail!(model, "not an ONNX model: expected a field number at byte {start}, found {}", key >> 3);
        };
        let wire = match key & 7 {
            0 => Wire::Varint,
            1 => Wire::Fixed64,
            2 => Wire::Bytes,
            5 => Wire::Fixed32,
            other => bail!(
                model,
                "not an ONNX model: expected a number, bytes or a message in field {field} at byte {start}, \
                 found wire type {other}"
            ),
        };
        Ok(Key { field, wire, start })
    }

    fn varint(&mut self, end: u64) -> Result<u64> {
        let start = self.at;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            if self.at >= end {
                bail!(model, "{}", truncated(start, end));
            }
            let mut byte = [0];
            self.input.read_exact(&mut byte).map_err(|error| self.failed(error))?;
            self.at += 1;
            let [byte] = byte;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!(model, "not an ONNX model: expected a number of at most 64 bits at byte {start}");
    }

    /// Reads the length of a field and returns where the field ends.
    fn length(&mut self, key: Key, end: u64) -> Result<u64> {
        let length = self.varint(end)?;
        match self.at.checked_add(length).filter(|until| *until <= end) {
            Some(until) => Ok(until),
            None => bail!(
                model,
                "field {} at byte {} should have {length} bytes, but only {} are left: \
                 the file is truncated, or no ONNX model",
                key.field,
                key.start,
                end - self.at
            ),
        }
    }

    fn fixed(&mut self, length: u64, end: u64, out: &mut Vec<u8>) -> Result<()> {
        if end - self.at < length {
            bail!(model, "{}", truncated(self.at, end));
        }
        self.copy(length, out)
    }

    /// Copies bytes that are known to lie inside the message. Memory grows with what is read, not with what is promised.
    fn copy(&mut self, length: u64, out: &mut Vec<u8>) -> Result<()> {
        let copied =
            (&mut self.input).take(length).read_to_end(out).map_err(|error| self.failed(error))? as u64;
        self.at += copied;
        if copied < length {
            return Err(self.failed(ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    fn skip(&mut self, length: u64) -> Result<()> {
        let by = i64::try_from(length).map_err(|_| self.failed(ErrorKind::UnexpectedEof.into()))?;
        self.input.seek_relative(by).map_err(|error| self.failed(error))?;
        self.at += length;
        Ok(())
    }

    fn failed(&self, error: std::io::Error) -> Error {
        match error.kind() {
            // Lengths are checked before reading, so the file became shorter meanwhile.
            ErrorKind::UnexpectedEof => {
                Error::model(format!("the file ends at byte {}, before the model does", self.at))
            }
            _ => Error::io("read", "the model", error),
        }
    }
}

fn truncated(start: u64, end: u64) -> String {
    format!("the value at byte {start} is cut off at byte {end}: the file is truncated, or no ONNX model")
}

fn put_key(out: &mut Vec<u8>, key: Key) {
    put_varint(out, u64::from(key.field) << 3 | key.wire as u64);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Decodes one field of a message and adds it.
fn merge(message: &mut impl Message, field: &[u8], key: Key) -> Result<()> {
    message.merge(field).map_err(|error| {
        Error::model(format!("not an ONNX model: {error} (in the field at byte {})", key.start))
    })
}

#[cfg(test)]
mod tests {
    use super::super::proto::{
        AttributeProto, DimensionProto, DimensionValue, NodeProto, OperatorSetIdProto, TensorShapeProto,
        TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
    };
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// A model with a tensor of `n` elements in each place that the walker goes to.
    fn sample(n: usize) -> ModelProto {
        let tensor = |name: &str, value: f32| TensorProto {
            name: name.into(),
            data_type: data_type::FLOAT,
            dims: vec![n as i64],
            raw_data: Some(value.to_le_bytes().repeat(n).into()),
            ..Default::default()
        };
        let constant = |tensor| NodeProto {
            op_type: "Constant".into(),
            output: vec!["c".into()],
            attribute: vec![AttributeProto {
                name: "value".into(),
                t: Some(Box::new(tensor)),
                ..Default::default()
            }],
            ..Default::default()
        };
        let branch = GraphProto {
            node: vec![constant(tensor("inner", 3.0))],
            initializer: vec![tensor("branch", 4.0)],
            ..Default::default()
        };
        let choice = NodeProto {
            op_type: "If".into(),
            input: vec!["x".into()],
            attribute: vec![AttributeProto {
                name: "then_branch".into(),
                g: Some(branch.into()),
                ..Default::default()
            }],
            ..Default::default()
        };
        let dim = DimensionProto { value: Some(DimensionValue::Number(3)), ..Default::default() };
        let shape = TensorShapeProto { dim: vec![dim] };
        let tensor_type = TensorTypeProto { elem_type: data_type::FLOAT, shape: Some(shape) };
        let input = ValueInfoProto {
            name: "x".into(),
            r#type: Some(TypeProto { value: Some(TypeValue::Tensor(tensor_type)), ..Default::default() }),
            ..Default::default()
        };
        ModelProto {
            ir_version: 8,
            producer_name: "test".into(),
            graph: Some(GraphProto {
                name: "g".into(),
                node: vec![constant(tensor("attribute", 2.0)), choice],
                initializer: vec![tensor("w", 1.0)],
                input: vec![input],
                ..Default::default()
            }),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
            ..Default::default()
        }
    }

    /// Calls `visit` with every tensor of the graph.
    fn each_tensor(graph: &mut GraphProto, visit: &mut impl FnMut(&mut TensorProto)) {
        graph.initializer.iter_mut().for_each(&mut *visit);
        for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
            attribute.t.as_deref_mut().map(&mut *visit);
            if let Some(graph) = &mut attribute.g {
                each_tensor(graph, visit);
            }
        }
    }

    fn message(bytes: &[u8]) -> String {
        match read_reader(bytes) {
            Ok(_) => "no error".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn small_models_are_read_as_written() {
        let sample = sample(3);
        let model = read_bytes(sample.encode_to_vec().into()).unwrap();
        assert_eq!(model.model, sample);
    }

    #[test]
    fn large_tensors_are_found_wherever_they_lie() {
        let n = 1000;
        let mut sample = sample(n);
        let mut parsed = read_bytes(sample.encode_to_vec().into()).unwrap();
        let mut found = Vec::new();
        let mut graph = parsed.model.graph.take().unwrap();
        each_tensor(&mut graph, &mut |tensor| {
            assert_eq!(tensor.raw_data, None);
            let loaded = parsed.stored(tensor).unwrap().load().unwrap();
            found.push((tensor.name.clone(), loaded.to_f32().sum() / n as f32));
        });
        let expected = [("w", 1.0), ("attribute", 2.0), ("branch", 4.0), ("inner", 3.0)];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value)));

        // But for the elements, nothing is lost.
        each_tensor(sample.graph.as_mut().unwrap(), &mut |tensor| tensor.raw_data = None);
        each_tensor(&mut graph, &mut |tensor| {
            tensor.external_data.clear();
            tensor.data_location = 0;
        });
        parsed.model.graph = Some(graph);
        assert_eq!(parsed.model, sample);
    }

    #[test]
    fn stale_external_data_gives_way_to_elements() {
        let mut sample = sample(1000);
        let tensor = &mut sample.graph.as_mut().unwrap().initializer[0];
        tensor.external_data = vec![StringStringEntryProto::new("location", "gone")];
        let parsed = read_bytes(sample.encode_to_vec().into()).unwrap();
        let tensor = &parsed.model.graph.as_ref().unwrap().initializer[0];
        assert_eq!(parsed.stored(tensor).unwrap().load().unwrap().len(), 1000);
    }

    /// Reads and loads all that can be; must neither panic nor hang.
    fn try_all(bytes: &[u8]) -> bool {
        let Ok(mut parsed) = read_reader(bytes) else { return false };
        let mut graph = parsed.model.graph.take().unwrap();
        each_tensor(&mut graph, &mut |tensor| drop(parsed.stored(tensor).and_then(|stored| stored.load())));
        true
    }

    #[test]
    fn truncation_at_every_byte_is_survived() {
        for n in [3, 300] {
            let bytes = sample(n).encode_to_vec();
            let n_read = (0..bytes.len()).filter(|end| try_all(&bytes[..*end])).count();
            // The graph is followed by one field, before and after which the file may end.
            assert_eq!(n_read, 1);
            assert!(try_all(&bytes));
        }
    }

    #[test]
    fn random_bytes_are_survived() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for _ in 0..20_000 {
            let mut bytes = vec![0; (rng.next_u32() % 200) as usize];
            rng.fill_bytes(&mut bytes);
            try_all(&bytes);
        }
    }

    #[test]
    fn changed_bytes_are_survived() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let samples = [sample(3).encode_to_vec(), sample(300).encode_to_vec()];
        for i in 0..20_000 {
            let mut bytes = samples[i % 2].clone();
            for _ in 0..=rng.next_u32() % 4 {
                let at = rng.next_u64() as usize % bytes.len();
                bytes[at] = rng.next_u32() as u8;
            }
            try_all(&bytes);
        }
    }

    #[test]
    fn malformed_bytes_are_refused_with_their_place() {
        let mut overlong = vec![0x08];
        overlong.extend([0xff; 10]);
        let mut deep = Vec::new();
        for _ in 0..200 {
            // A graph in an attribute in a node in a graph.
            for key in [0x32u8, 0x2a, 0x0a] {
                let mut outer = vec![key];
                put_varint(&mut outer, deep.len() as u64);
                outer.append(&mut deep);
                deep = outer;
            }
        }
        let mut nested = vec![0x3a];
        put_varint(&mut nested, deep.len() as u64);
        nested.extend(deep);
        let cases: &[(&[u8], &str)] = &[
            (b"", "it is empty"),
            (b"\x08\x08", "no graph"),
            (b"\x08\x08\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "field 7 at byte 2"),
            (b"\x08\x08\x3a\x05\x2a\x40\x4a\x00\x00", "field 5 at byte 4 should have 64 bytes, but only 3"),
            (b"\x08\x08\x3a\x07\x2a\x05\x4a\xff\xff\xff\x7f", "field 9 at byte 6"),
            (b"\x08\x08\x3a", "cut off at byte 3"),
            (b"\x08\x08\x3d\x00", "the value at byte 3 is cut off"),
            (b"\x08\x08\x3b\x00", "wire type 3"),
            (b"\x08\x08\x00\x00", "field number at byte 2, found 0"),
            (b"\x08\x08\x3a\x03\x12\x01\xff", "GraphProto.name"),
            (b"\x08\x08\x38\x01", "(in the field at byte 2)"),
            (&overlong, "at most 64 bits at byte 1"),
            (&nested, "nested deeper"),
            (b"hello, world", "not an ONNX model"),
            (b"{\"a\": 1}", "JSON"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ];
        for (bytes, expected) in cases {
            let found = message(bytes);
            assert!(found.contains(expected), "expected '{expected}' in: {found}");
        }
    }

    #[test]
    fn mistaken_paths_are_named() {
        let folder = std::env::temp_dir().join(format!("ouzel-wire-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let error = |path: &Path| read_path(path).err().expect("an error").to_string();

        assert!(error(&folder).contains("a folder, expected an ONNX file"));
        let missing = error(&folder.join("missing.onnx"));
        assert!(missing.contains("cannot open") && missing.contains("missing.onnx"), "{missing}");
        let empty = folder.join("empty.onnx");
        std::fs::write(&empty, b"").unwrap();
        assert!(error(&empty).contains("empty.onnx: not an ONNX model: it is empty"));
        assert!(error(&folder).contains("perhaps"));
        std::fs::write(folder.join("saved_model.pb"), b"").unwrap();
        assert!(error(&folder).contains("SavedModel"));

        std::fs::remove_dir_all(&folder).unwrap();
    }
}
