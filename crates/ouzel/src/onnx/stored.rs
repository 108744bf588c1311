//! Tensors whose elements still lie where the model put them: in its file, in a file beside it, or in memory.

#[cfg(test)]
mod tests;

use super::proto::{TensorProto, data_type};
use crate::error::{Context, Error, Result, bail};
use crate::ops::quantize::Format;
use crate::tensor::{DType, Element, Tensor};
use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A tensor of the model, known to be complete, whose elements are read on demand.
///
/// Floating point types of 16 and 8 bits are read as float32, integers of 4 bits as those of 8.
#[derive(Clone)]
pub(crate) struct Stored {
    name: String,
    encoding: Encoding,
    shape: Vec<usize>,
    place: Place,
}

/// Where the elements lie.
#[derive(Clone)]
enum Place {
    /// Little-endian in memory.
    Memory(Bytes),
    /// Little-endian in a file, from this byte on.
    File(Arc<DataFile>, u64),
    /// Already a tensor.
    Ready(Tensor),
}

/// What the tensors of a model are read from.
#[derive(Clone)]
pub(crate) struct Source {
    /// The model itself.
    pub(crate) body: Body,
    /// The folder that locations of external data are relative to; `None` if the model came without a path.
    pub(crate) folder: Option<PathBuf>,
}

/// The bytes of a model.
#[derive(Clone)]
pub(crate) enum Body {
    /// In memory.
    Memory(Bytes),
    /// In a file.
    File(Arc<DataFile>),
}

impl Source {
    /// No bytes: for models that came from no file.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        Self { body: Body::Memory(Bytes::new()), folder: None }
    }

    /// The SHA-256 of the model's bytes, external data aside, in hexadecimal.
    pub(crate) fn sha256(&self) -> Result<String> {
        let mut hash = Sha256::new();
        match &self.body {
            Body::Memory(bytes) => hash.update(bytes),
            Body::File(file) => file.read(0, file.length as usize, |block| {
                hash.update(block);
                Ok(())
            })?,
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// A file that elements are read from.
pub(crate) struct DataFile {
    path: PathBuf,
    length: u64,
    /// The model's own file stays open. External data is opened for each read, as there may be one file per tensor.
    handle: Option<File>,
}

impl DataFile {
    /// The regular file at `path`, opened anew for each read.
    fn external(path: PathBuf) -> Result<Self> {
        let metadata = path.metadata().map_err(|error| Error::io("read external data from", &path, error))?;
        if !metadata.is_file() {
            bail!(model, "external data in {}, which is not a file", path.display());
        }
        Ok(Self { path, length: metadata.len(), handle: None })
    }

    /// A file that is open already, and stays so.
    pub(crate) fn open(path: &Path, handle: File, length: u64) -> Self {
        Self { path: path.to_owned(), length, handle: Some(handle) }
    }

    /// Hands the bytes of `offset..offset + length` to `take`, in order, in blocks whose length is a multiple of
    /// eight except for the last one.
    fn read(&self, offset: u64, length: usize, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        const BLOCK: usize = 128 << 10;
        let opened;
        let handle = match &self.handle {
            Some(handle) => handle,
            None => {
                opened = File::open(&self.path).map_err(|error| Error::io("open", &self.path, error))?;
                &opened
            }
        };
        let mut block = vec![0; length.min(BLOCK)];
        for start in (0..length).step_by(BLOCK) {
            let bytes = &mut block[..BLOCK.min(length - start)];
            read_exact_at(handle, bytes, offset + start as u64)
                .map_err(|error| Error::io("read", &self.path, error))?;
            take(bytes)?;
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    // The cursor belongs to the handle, which threads share.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

/// An element type as files store it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    F32,
    F64,
    F16,
    Bf16,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    Bool,
    /// 8-bit floating point.
    F8(Format),
    /// Two elements a byte, the first in the lower half.
    I4,
    U4,
}

/// The element type behind a number of ONNX's `TensorProto.DataType`, as tensors of it are read.
pub(crate) fn dtype_of_code(code: i64) -> Result<DType> {
    Ok(Encoding::new(i32::try_from(code).unwrap_or(data_type::UNDEFINED))?.dtype())
}

impl Encoding {
    fn new(number: i32) -> Result<Self> {
        Ok(match number {
            data_type::FLOAT => Self::F32,
            data_type::DOUBLE => Self::F64,
            data_type::FLOAT16 => Self::F16,
            data_type::BFLOAT16 => Self::Bf16,
            data_type::INT8 => Self::I8,
            data_type::UINT8 => Self::U8,
            data_type::INT16 => Self::I16,
            data_type::UINT16 => Self::U16,
            data_type::INT32 => Self::I32,
            data_type::UINT32 => Self::U32,
            data_type::INT64 => Self::I64,
            data_type::UINT64 => Self::U64,
            data_type::BOOL => Self::Bool,
            data_type::FLOAT8E4M3FN => Self::F8(Format::Float8E4M3Fn),
            data_type::FLOAT8E4M3FNUZ => Self::F8(Format::Float8E4M3Fnuz),
            data_type::FLOAT8E5M2 => Self::F8(Format::Float8E5M2),
            data_type::FLOAT8E5M2FNUZ => Self::F8(Format::Float8E5M2Fnuz),
            data_type::INT4 => Self::I4,
            data_type::UINT4 => Self::U4,
            data_type::UNDEFINED => bail!(model, "no element type is given"),
            other => bail!(
                unsupported,
                "elements of {} are not supported, only floating point numbers of 8 to 64 bits, bool and \
                 integers of 4 to 64 bits",
                data_type::name(other)
            ),
        })
    }

    /// The type of the elements once read.
    fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::F8(_) => DType::F32,
            Self::F64 => DType::F64,
            Self::I8 | Self::I4 => DType::I8,
            Self::U8 | Self::U4 => DType::U8,
            Self::I16 => DType::I16,
            Self::U16 => DType::U16,
            Self::I32 => DType::I32,
            Self::U32 => DType::U32,
            Self::I64 => DType::I64,
            Self::U64 => DType::U64,
            Self::Bool => DType::Bool,
        }
    }

    /// Bytes of so many elements as stored.
    fn bytes(self, count: usize) -> usize {
        if matches!(self, Self::I4 | Self::U4) { count.div_ceil(2) } else { count * self.size() }
    }

    /// Bytes of one element as stored, where it does not share them.
    fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool | Self::F8(_) | Self::I4 | Self::U4 => 1,
        }
    }
}

impl Stored {
    /// The tensor that `tensor` describes, its type, shape and storage checked.
    ///
    /// External data must exist and be long enough, but none of it is read.
    pub(crate) fn new(tensor: &TensorProto, source: &Source) -> Result<Self> {
        Self::check(tensor, source).context(|| label(&tensor.name))
    }

    fn check(tensor: &TensorProto, source: &Source) -> Result<Self> {
        let encoding = Encoding::new(tensor.data_type)?;
        if tensor.segment.is_some() {
            bail!(unsupported, "it is stored in segments, which is not supported");
        }
        let (shape, length) = checked_shape(&tensor.dims, encoding)?;
        let raw = tensor.raw_data.as_ref().filter(|raw| !raw.is_empty());
        let fields = typed_fields(tensor);
        let n_places = usize::from(tensor.data_location == TensorProto::EXTERNAL)
            + usize::from(raw.is_some())
            + fields.iter().filter(|(_, len)| *len > 0).count();
        let place = match raw {
            _ if n_places > 1 => bail!(model, "its elements are stored in {n_places} places, expected one"),
            Some(raw) => {
                check_length(raw.len() as u64, length, &shape, tensor.data_type)?;
                Place::Memory(raw.clone())
            }
            None if tensor.data_location == TensorProto::EXTERNAL => {
                external(tensor, length, source, &shape)?
            }
            None if length == 0 && n_places == 0 => Place::Memory(Bytes::new()),
            None => Place::Ready(typed(tensor, encoding, &shape)?),
        };
        Ok(Self { name: tensor.name.clone(), encoding, shape, place })
    }

    /// The type of the elements once read.
    pub(crate) fn dtype(&self) -> DType {
        self.encoding.dtype()
    }

    /// The length of each axis.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Reads the tensor.
    pub(crate) fn load(&self) -> Result<Tensor> {
        if let Place::Ready(tensor) = &self.place {
            return Ok(tensor.clone());
        }
        match self.encoding {
            Encoding::F32 => self.load_as(little(f32::from_le_bytes)),
            Encoding::F64 => self.load_as(little(f64::from_le_bytes)),
            Encoding::F16 => self.load_as(widen_f16),
            Encoding::Bf16 => self.load_as(widen_bf16),
            Encoding::I8 => self.load_as(little(i8::from_le_bytes)),
            Encoding::U8 => self.load_as(little(u8::from_le_bytes)),
            Encoding::I16 => self.load_as(little(i16::from_le_bytes)),
            Encoding::U16 => self.load_as(little(u16::from_le_bytes)),
            Encoding::I32 => self.load_as(little(i32::from_le_bytes)),
            Encoding::U32 => self.load_as(little(u32::from_le_bytes)),
            Encoding::I64 => self.load_as(little(i64::from_le_bytes)),
            Encoding::U64 => self.load_as(little(u64::from_le_bytes)),
            Encoding::Bool => self.load_as(little(|[byte]: [u8; 1]| byte != 0)),
            Encoding::F8(format) => self.load_as(little(|[byte]: [u8; 1]| format.decode(byte))),
            Encoding::I4 => self.load_halves(|half| (half << 4).cast_signed() >> 4),
            Encoding::U4 => self.load_halves(|half| half),
        }
        .context(|| label(&self.name))
    }

    fn load_as<T: Element + Default>(
        &self,
        decode: impl Fn(&[u8], &mut [T]) -> Result<()>,
    ) -> Result<Tensor> {
        let mut values = vec![T::default(); self.len()];
        self.decode(&mut values, decode)?;
        Tensor::from_shape_vec(&self.shape, values)
    }

    /// Elements that are half a byte each.
    fn load_halves<T: Element + Default>(&self, from: impl Fn(u8) -> T) -> Result<Tensor> {
        let count = self.len();
        let mut bytes = vec![0u8; count.div_ceil(2)];
        self.decode(&mut bytes, little(|[byte]: [u8; 1]| byte))?;
        let halves = bytes.into_iter().flat_map(|byte| [byte & 15, byte >> 4]);
        Tensor::from_shape_vec(&self.shape, halves.take(count).map(from).collect())
    }

    /// Fills `out` block by block.
    fn decode<T>(&self, out: &mut [T], decode: impl Fn(&[u8], &mut [T]) -> Result<()>) -> Result<()> {
        match &self.place {
            Place::Memory(bytes) => decode(bytes, out),
            Place::File(file, offset) => {
                let size = self.encoding.size();
                let mut rest = &mut *out;
                file.read(*offset, rest.len() * size, |bytes| {
                    let (block, tail) = std::mem::take(&mut rest).split_at_mut(bytes.len() / size);
                    rest = tail;
                    decode(bytes, block)
                })
            }
            Place::Ready(_) => Err(Error::internal("a tensor that is ready has no bytes to decode")),
        }
    }
}

impl crate::graph::Stored for Stored {
    fn load(&self) -> Result<Tensor> {
        Stored::load(self)
    }

    fn halves(&self) -> Option<i32> {
        match (&self.place, self.encoding) {
            (Place::Ready(_), _) => None,
            (_, Encoding::F16) => Some(data_type::FLOAT16),
            (_, Encoding::Bf16) => Some(data_type::BFLOAT16),
            _ => None,
        }
    }

    fn read_halves(&self) -> Result<Vec<u8>> {
        let mut halves = vec![[0; 2]; self.len()];
        self.decode(&mut halves, little(|half: [u8; 2]| half)).context(|| label(&self.name))?;
        Ok(halves.into_flattened())
    }

    fn read_floats(&self, first: usize, out: &mut [f32]) -> Result<bool> {
        let (Place::File(file, offset), Encoding::F32) = (&self.place, self.encoding) else {
            return Ok(false);
        };
        if first.checked_add(out.len()).is_none_or(|end| end > self.len()) {
            return Err(Error::internal("elements beyond the end of a tensor were asked for"));
        }
        let mut rest = &mut *out;
        let decode = little(f32::from_le_bytes);
        file.read(*offset + 4 * first as u64, 4 * rest.len(), |bytes| {
            let (block, tail) = std::mem::take(&mut rest).split_at_mut(bytes.len() / 4);
            rest = tail;
            decode(bytes, block)
        })
        .context(|| label(&self.name))?;
        Ok(true)
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.place {
            Place::Memory(_) => "in memory".to_owned(),
            Place::File(file, offset) => format!("in {} at byte {offset}", file.path.display()),
            Place::Ready(_) => "ready".to_owned(),
        };
        write!(f, "{}: {:?} {:?} {place}", label(&self.name), self.encoding, self.shape)
    }
}

/// How messages call a tensor.
fn label(name: &str) -> String {
    if name.is_empty() { "a tensor without name".to_owned() } else { format!("tensor '{name}'") }
}

/// Decodes elements one by one.
fn little<T, const N: usize>(from: impl Fn([u8; N]) -> T) -> impl Fn(&[u8], &mut [T]) -> Result<()> {
    move |bytes, out| {
        for (chunk, out) in bytes.as_chunks().0.iter().zip(out) {
            *out = from(*chunk);
        }
        Ok(())
    }
}

/// `half` converts slices with the CPU's instruction, which it looks for once per call.
const HALF_BLOCK: usize = 1024;

fn widen_f16(bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let mut halves = [f16::ZERO; HALF_BLOCK];
    for (bytes, out) in bytes.chunks(2 * HALF_BLOCK).zip(out.chunks_mut(HALF_BLOCK)) {
        let halves = &mut halves[..out.len()];
        little(f16::from_le_bytes)(bytes, halves)?;
        halves.convert_to_f32_slice(out);
    }
    Ok(())
}

fn widen_bf16(bytes: &[u8], out: &mut [f32]) -> Result<()> {
    little(|bytes| bf16::from_le_bytes(bytes).to_f32())(bytes, out)
}

/// The shape, and how many bytes its elements take as stored.
fn checked_shape(dims: &[i64], encoding: Encoding) -> Result<(Vec<usize>, usize)> {
    let mut shape = Vec::with_capacity(dims.len());
    for &dim in dims {
        match usize::try_from(dim) {
            Ok(dim) => shape.push(dim),
            Err(_) if dim < 0 => bail!(model, "shape {dims:?} has a negative dimension"),
            Err(_) => bail!(model, "shape {dims:?} is too large"),
        }
    }
    // Arrays demand that the axes other than those of length 0 fit into the address space too.
    let size = encoding.size().max(encoding.dtype().size());
    let fits = shape.iter().filter(|dim| **dim > 0).try_fold(size, |bytes, dim| bytes.checked_mul(*dim));
    if fits.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        bail!(model, "shape {dims:?} is too large");
    }
    let length = encoding.bytes(shape.iter().product());
    Ok((shape, length))
}

fn check_length(found: u64, expected: usize, shape: &[usize], data_type: i32) -> Result<()> {
    if found != expected as u64 {
        let name = data_type::name(data_type);
        bail!(model, "shape {shape:?} of {name} needs {expected} bytes, found {found}");
    }
    Ok(())
}

/// The typed fields by name, with how many elements they hold.
fn typed_fields(tensor: &TensorProto) -> [(&'static str, usize); 6] {
    [
        ("float_data", tensor.float_data.len()),
        ("int32_data", tensor.int32_data.len()),
        ("string_data", tensor.string_data.len()),
        ("int64_data", tensor.int64_data.len()),
        ("double_data", tensor.double_data.len()),
        ("uint64_data", tensor.uint64_data.len()),
    ]
}

/// The tensor in the typed field that belongs to its type.
fn typed(tensor: &TensorProto, encoding: Encoding, shape: &[usize]) -> Result<Tensor> {
    let expected = match encoding {
        Encoding::F32 => "float_data",
        Encoding::F64 => "double_data",
        Encoding::I64 => "int64_data",
        Encoding::U32 | Encoding::U64 => "uint64_data",
        _ => "int32_data",
    };
    let name = data_type::name(tensor.data_type);
    let Some((found, len)) = typed_fields(tensor).into_iter().find(|(_, len)| *len > 0) else {
        bail!(model, "shape {shape:?} of {name} has elements, but none are stored");
    };
    if found != expected {
        bail!(model, "{name} belongs in {expected}, found it in {found}");
    }
    let count: usize = shape.iter().product();
    let n_elements = if matches!(encoding, Encoding::I4 | Encoding::U4) { count.div_ceil(2) } else { count };
    if len != n_elements {
        bail!(model, "shape {shape:?} needs {n_elements} elements, found {len} in {found}");
    }
    /// The elements of `int32_data` as a type that they must fit.
    fn narrow<T: TryFrom<i32>>(values: &[i32], name: &str) -> Result<Vec<T>> {
        let fit = |&value| T::try_from(value).map_err(|_| value);
        values
            .iter()
            .map(fit)
            .collect::<Result<_, _>>()
            .map_err(|value| Error::model(format!("int32_data holds {value}, which is no {name}")))
    }
    let ints = &tensor.int32_data;
    match encoding {
        Encoding::F32 => Tensor::from_shape_vec(shape, tensor.float_data.clone()),
        Encoding::F64 => Tensor::from_shape_vec(shape, tensor.double_data.clone()),
        Encoding::F16 | Encoding::Bf16 => {
            let widen = |bits| match encoding {
                Encoding::F16 => f16::from_bits(bits).to_f32(),
                _ => bf16::from_bits(bits).to_f32(),
            };
            let bits = narrow::<u16>(ints, &name)?;
            Tensor::from_shape_vec(shape, bits.into_iter().map(widen).collect())
        }
        Encoding::F8(format) => {
            let bytes = narrow::<u8>(ints, &name)?;
            Tensor::from_shape_vec(shape, bytes.into_iter().map(|byte| format.decode(byte)).collect())
        }
        Encoding::I4 | Encoding::U4 => {
            // Each number is a byte of two elements.
            let bytes: Vec<u8> = ints.iter().map(|&value| value as u8).collect();
            let place = Place::Memory(bytes.into());
            Stored { name: String::new(), encoding, shape: shape.to_vec(), place }.load()
        }
        Encoding::I8 => Tensor::from_shape_vec(shape, narrow::<i8>(ints, &name)?),
        Encoding::U8 => Tensor::from_shape_vec(shape, narrow::<u8>(ints, &name)?),
        Encoding::I16 => Tensor::from_shape_vec(shape, narrow::<i16>(ints, &name)?),
        Encoding::U16 => Tensor::from_shape_vec(shape, narrow::<u16>(ints, &name)?),
        Encoding::I32 => Tensor::from_shape_vec(shape, ints.clone()),
        Encoding::I64 => Tensor::from_shape_vec(shape, tensor.int64_data.clone()),
        Encoding::U32 => {
            let values = tensor.uint64_data.iter().map(|&value| {
                u32::try_from(value)
                    .map_err(|_| Error::model(format!("uint64_data holds {value}, which is no uint32")))
            });
            Tensor::from_shape_vec(shape, values.collect::<Result<Vec<u32>>>()?)
        }
        Encoding::U64 => Tensor::from_shape_vec(shape, tensor.uint64_data.clone()),
        Encoding::Bool => Tensor::from_shape_vec(shape, ints.iter().map(|value| *value != 0).collect()),
    }
}

/// The keys of [`TensorProto::external_data`].
pub(crate) mod external_key {
    /// The file, relative to the model's folder. Empty for the model's own file: so says the wire walker,
    /// and no file is named by it.
    pub(crate) const LOCATION: &str = "location";
    /// The first byte.
    pub(crate) const OFFSET: &str = "offset";
    /// How many bytes.
    pub(crate) const LENGTH: &str = "length";
}

/// Where elements lie that are stored outside of the message.
fn external(tensor: &TensorProto, expected: usize, source: &Source, shape: &[usize]) -> Result<Place> {
    let value = |key: &str| -> Result<Option<&str>> {
        let mut values = tensor.external_data.iter().filter(|entry| entry.key == key);
        let value = values.next().map(|entry| entry.value.as_str());
        if values.next().is_some() {
            bail!(model, "external data gives '{key}' twice");
        }
        Ok(value)
    };
    let number = |key: &str| -> Result<Option<u64>> {
        value(key)?
            .map(|text| {
                text.parse().map_err(|_| {
                    Error::model(format!("external data: expected a number for '{key}', found '{text}'"))
                })
            })
            .transpose()
    };
    let Some(location) = value(external_key::LOCATION)? else {
        bail!(model, "external data without 'location'");
    };
    let offset = number(external_key::OFFSET)?.unwrap_or(0);
    check_length(
        number(external_key::LENGTH)?.unwrap_or(expected as u64),
        expected,
        shape,
        tensor.data_type,
    )?;
    let end = offset.checked_add(expected as u64);
    let inside = |length: u64, what: &dyn fmt::Display| {
        if end.is_none_or(|end| end > length) {
            bail!(
                model,
                "its {expected} bytes at byte {offset} reach beyond the end of {what}, which has {length} bytes: \
                 the file is truncated or belongs to another model"
            );
        }
        Ok(())
    };
    if location.is_empty() {
        return match &source.body {
            Body::Memory(bytes) => {
                inside(bytes.len() as u64, &"the model")?;
                let start = offset as usize;
                Ok(Place::Memory(bytes.slice(start..start + expected)))
            }
            Body::File(file) => {
                inside(file.length, &file.path.display())?;
                Ok(Place::File(Arc::clone(file), offset))
            }
        };
    }
    let relative = Path::new(location);
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        bail!(model, "external data in '{location}': expected a path inside the model's folder");
    }
    let Some(folder) = &source.folder else {
        bail!(
            model,
            "its elements lie in the file '{location}' beside the model: load the model by its path, not from bytes"
        );
    };
    let file = DataFile::external(folder.join(relative))?;
    inside(file.length, &file.path.display())?;
    Ok(Place::File(Arc::new(file), offset))
}
