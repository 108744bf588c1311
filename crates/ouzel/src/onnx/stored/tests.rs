//! Tensors of every type, read from every place, and those that are refused.

use super::super::proto::{GraphProto, ModelProto, StringStringEntryProto};
use super::super::wire::{ParsedModel, read_bytes, read_path, read_reader};
use super::*;
use crate::graph::Constant;
use crate::tensor::DType;
use prost::Message;

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ouzel-stored-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn model_of(tensor: TensorProto) -> Vec<u8> {
    let graph = GraphProto { initializer: vec![tensor], ..Default::default() };
    ModelProto { ir_version: 8, graph: Some(graph), ..Default::default() }.encode_to_vec()
}

fn first(model: &ParsedModel) -> Result<Stored> {
    model.stored(&model.model.graph.as_ref().unwrap().initializer[0])
}

/// The tensor read by path, from bytes and from a stream.
fn read_each_way(folder: &Folder, tensor: TensorProto) -> Vec<Result<Tensor>> {
    let bytes = model_of(tensor);
    let path = folder.write("model.onnx", &bytes);
    let parsed = [read_path(&path), read_reader(&bytes[..]), read_bytes(bytes.into())];
    parsed.into_iter().map(|model| first(&model?)?.load()).collect()
}

fn error_of(tensor: TensorProto) -> String {
    let bytes = model_of(tensor);
    let error = read_bytes(bytes.into()).and_then(|model| first(&model)?.load()).unwrap_err();
    format!("{error:?}")
}

fn tensor(data_type: i32, dims: &[i64]) -> TensorProto {
    TensorProto { name: "w".into(), data_type, dims: dims.to_vec(), ..Default::default() }
}

/// Small enough to be decoded with the rest, and large enough to stay in the file, over more than one block.
const SIZES: [usize; 3] = [6, 3000, 150_000];

#[test]
fn every_type_is_read_from_every_place() {
    let folder = Folder::new("types");
    macro_rules! check {
        ($data_type:ident, $stored:ty, $read:ty, $field:ident, $to_field:expr, $value:expr) => {
            for n in SIZES {
                let stored: Vec<$stored> = (0..n).map($value).collect();
                let read: Vec<$read> = stored.iter().map(|value| <$read>::from(*value)).collect();
                let expected = Tensor::from_shape_vec(&[2, n / 2], read).unwrap();
                let raw: Vec<u8> = stored.iter().flat_map(|value| value.to_le_bytes()).collect();
                let plain = tensor(data_type::$data_type, &[2, (n / 2) as i64]);
                let external = |location: &str, offset: usize| TensorProto {
                    data_location: TensorProto::EXTERNAL,
                    external_data: vec![
                        StringStringEntryProto::new("location", location),
                        StringStringEntryProto::new("offset", offset.to_string()),
                        StringStringEntryProto::new("length", raw.len().to_string()),
                    ],
                    ..plain.clone()
                };
                folder.write("weights.bin", &[&[7; 5][..], &raw].concat());

                let mut results = Vec::new();
                results.extend(read_each_way(
                    &folder,
                    TensorProto { raw_data: Some(raw.clone().into()), ..plain.clone() },
                ));
                let $field = stored.iter().map($to_field).collect();
                results.extend(read_each_way(&folder, TensorProto { $field, ..plain.clone() }));
                results.extend(read_each_way(&folder, external("weights.bin", 5)).into_iter().take(1));
                for (place, result) in results.into_iter().enumerate() {
                    let found = result.unwrap();
                    assert_eq!(found, expected, "{} of {n} elements, way {place}", stringify!($data_type));
                    assert_eq!(found.dtype(), <$read as Element>::DTYPE);
                }
            }
        };
    }
    check!(FLOAT, f32, f32, float_data, |v| *v, |i| i as f32 * 0.37 - 3.0);
    check!(DOUBLE, f64, f64, double_data, |v| *v, |i| i as f64 * 0.37 - 3.0);
    check!(FLOAT16, f16, f32, int32_data, |v| i32::from(v.to_bits()), |i| f16::from_f64(i as f64 * -0.37));
    check!(BFLOAT16, bf16, f32, int32_data, |v| i32::from(v.to_bits()), |i| bf16::from_f64(i as f64 * -0.37));
    check!(INT8, i8, i8, int32_data, |v| i32::from(*v), |i| i as i8);
    check!(UINT8, u8, u8, int32_data, |v| i32::from(*v), |i| i as u8);
    check!(INT16, i16, i16, int32_data, |v| i32::from(*v), |i| (i as i16).wrapping_mul(-77));
    check!(UINT16, u16, u16, int32_data, |v| i32::from(*v), |i| (i as u16).wrapping_mul(77));
    check!(INT32, i32, i32, int32_data, |v| *v, |i| i as i32 * -9999);
    check!(INT64, i64, i64, int64_data, |v| *v, |i| i as i64 * -999_999_999);
    check!(UINT32, u32, u32, uint64_data, |v| u64::from(*v), |i| (i as u32).wrapping_mul(99_999_999));
}

#[test]
fn elements_are_read_in_part_also_after_another_plan_has_read_all() {
    let folder = Folder::new("parts");
    let values: Vec<f32> = (0..3000).map(|i| i as f32 * 0.37 - 3.0).collect();
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let plain = tensor(data_type::FLOAT, &[3000]);
    let bytes = model_of(TensorProto { raw_data: Some(raw.into()), ..plain });
    let model = read_path(&folder.write("model.onnx", &bytes)).unwrap();
    let stored = first(&model).unwrap();
    let constant = Constant::stored(DType::F32, &[3000], Box::new(stored)).unwrap();
    for _ in 0..2 {
        let mut found = vec![0.0; 100];
        assert!(constant.read_floats(2000, &mut found).unwrap());
        assert_eq!(found, values[2000..2100]);
        constant.tensor().unwrap();
    }
}

#[test]
fn bool_and_uint64_are_read() {
    let folder = Folder::new("bool");
    let bools = Tensor::vector([true, false, true]);
    let numbers = [0, u64::MAX, 3];
    let unsigned = Tensor::vector(numbers);
    let raw: Vec<u8> = numbers.iter().flat_map(|value| value.to_le_bytes()).collect();
    let cases = [
        (TensorProto { raw_data: Some(vec![1, 0, 255].into()), ..tensor(data_type::BOOL, &[3]) }, &bools),
        (TensorProto { int32_data: vec![1, 0, 2], ..tensor(data_type::BOOL, &[3]) }, &bools),
        (TensorProto { raw_data: Some(raw.into()), ..tensor(data_type::UINT64, &[3]) }, &unsigned),
        (TensorProto { uint64_data: numbers.to_vec(), ..tensor(data_type::UINT64, &[3]) }, &unsigned),
    ];
    for (proto, expected) in cases {
        for found in read_each_way(&folder, proto) {
            assert_eq!(&found.unwrap(), expected);
        }
    }
}

#[test]
fn scalars_empty_tensors_and_nan_are_legal() {
    let folder = Folder::new("edge");
    let scalar = TensorProto { float_data: vec![2.5], ..tensor(data_type::FLOAT, &[]) };
    let empty = tensor(data_type::FLOAT, &[2, 0, 3]);
    let empty_raw = TensorProto { raw_data: Some(Bytes::new()), ..empty.clone() };
    for (proto, expected) in [
        (scalar, Tensor::scalar(2.5f32)),
        (empty, Tensor::from_shape_vec::<f32>(&[2, 0, 3], vec![]).unwrap()),
        (empty_raw, Tensor::from_shape_vec::<f32>(&[2, 0, 3], vec![]).unwrap()),
    ] {
        for found in read_each_way(&folder, proto) {
            assert_eq!(found.unwrap(), expected);
        }
    }
    let nan = TensorProto { float_data: vec![f32::NAN], ..tensor(data_type::FLOAT, &[1]) };
    for found in read_each_way(&folder, nan) {
        assert!(found.unwrap().array::<f32>().unwrap()[[0]].is_nan());
    }
}

#[test]
fn large_elements_stay_in_the_file() {
    let folder = Folder::new("large");
    let values = vec![1.0f32; 1000];
    let path = folder.write(
        "model.onnx",
        &model_of(TensorProto { float_data: values, ..tensor(data_type::FLOAT, &[1000]) }),
    );
    let model = read_path(&path).unwrap();
    let initializer = &model.model.graph.as_ref().unwrap().initializer[0];
    assert!(initializer.float_data.is_empty());
    let stored = model.stored(initializer).unwrap();
    assert!(matches!(stored.place, Place::File(..)));
    // The open handle outlives a file that is replaced or removed.
    if cfg!(unix) {
        std::fs::remove_file(&path).unwrap();
        assert_eq!(stored.load().unwrap().len(), 1000);
    }
}

#[test]
fn broken_tensors_are_refused_by_name() {
    let float = |dims: &[i64], n| TensorProto { float_data: vec![0.0; n], ..tensor(data_type::FLOAT, dims) };
    let raw =
        |dims: &[i64], n| TensorProto { raw_data: Some(vec![0; n].into()), ..tensor(data_type::FLOAT, dims) };
    let cases = [
        (float(&[2, 3], 5), "needs 6 elements, found 5"),
        (float(&[2, 3], 3000), "needs 24 bytes, found 12000"),
        (raw(&[2, 3], 20), "shape [2, 3] of float32 needs 24 bytes, found 20"),
        (float(&[-1, 3], 3), "negative"),
        (float(&[i64::MAX, i64::MAX], 1), "too large"),
        (float(&[i64::MAX, 0, 16], 0), "too large"),
        (float(&[1 << 31, 1 << 31], 1), "too large"),
        (float(&[3], 0), "none are stored"),
        (TensorProto { raw_data: Some(vec![0; 4].into()), ..float(&[1], 1) }, "2 places"),
        (TensorProto { raw_data: Some(vec![0; 4000].into()), ..float(&[1000], 1000) }, "another place"),
        (TensorProto { data_type: data_type::INT64, ..float(&[1], 1) }, "belongs in int64_data"),
        (TensorProto { data_type: data_type::INT64, ..float(&[1000], 2000) }, "has float_data"),
        (TensorProto { data_type: data_type::UNDEFINED, ..float(&[1], 1) }, "no element type"),
        (TensorProto { data_type: data_type::STRING, ..tensor(0, &[1]) }, "elements of string"),
        (TensorProto { data_type: data_type::COMPLEX64, ..raw(&[1], 8) }, "elements of complex64"),
        (TensorProto { data_type: data_type::FLOAT4E2M1, ..raw(&[1], 1) }, "elements of float4e2m1"),
        (TensorProto { data_type: 99, ..raw(&[1], 1) }, "unknown type 99"),
        (TensorProto { segment: Some(Default::default()), ..float(&[1], 1) }, "segments"),
        (TensorProto { int32_data: vec![300], ..tensor(data_type::UINT8, &[1]) }, "300, which is no uint8"),
    ];
    for (proto, expected) in cases {
        let large = proto.float_data.len() >= 1000 && proto.dims == [1000];
        let message = error_of(proto);
        assert!(message.contains(expected), "expected '{expected}' in: {message}");
        assert!(large || message.contains("tensor 'w'"), "{message}");
    }
}

#[test]
fn external_data_is_checked() {
    let folder = Folder::new("external");
    folder.write("weights.bin", &[0; 100]);
    std::fs::create_dir_all(folder.0.join("inner")).unwrap();
    let external = |entries: &[(&str, &str)]| TensorProto {
        data_location: TensorProto::EXTERNAL,
        external_data: entries.iter().map(|(key, value)| StringStringEntryProto::new(*key, *value)).collect(),
        ..tensor(data_type::FLOAT, &[10])
    };
    let read = |proto: TensorProto| {
        let path = folder.write("model.onnx", &model_of(proto));
        let model = read_path(&path)?;
        first(&model).map(|stored| stored.load().unwrap().len())
    };
    let good: [&[_]; 4] = [
        &[("location", "weights.bin")],
        &[("location", "./weights.bin"), ("offset", "60")],
        &[("location", "weights.bin"), ("offset", "4"), ("length", "40"), ("checksum", "x")],
        &[("location", "inner/w")],
    ];
    folder.write("inner/w", &[0; 40]);
    for entries in good {
        assert_eq!(read(external(entries)).unwrap(), 10);
    }
    let bad: [(&[_], _); 13] = [
        (&[("location", "weights.bin"), ("offset", "61")], "reach beyond the end"),
        (&[("location", "weights.bin"), ("offset", "18446744073709551615")], "reach beyond the end"),
        (&[("location", "weights.bin"), ("length", "44")], "needs 40 bytes, found 44"),
        (&[("location", "weights.bin"), ("offset", "-1")], "expected a number for 'offset', found '-1'"),
        (&[("location", "weights.bin"), ("offset", "1e3")], "expected a number"),
        (&[("location", "weights.bin"), ("location", "weights.bin")], "twice"),
        (&[("offset", "4")], "without 'location'"),
        (&[("location", "missing.bin")], "missing.bin"),
        (&[("location", "inner")], "not a file"),
        (&[("location", "../weights.bin")], "inside the model's folder"),
        (&[("location", "inner/../../weights.bin")], "inside the model's folder"),
        (&[("location", "/etc/hostname")], "inside the model's folder"),
        (&[("location", ""), ("offset", "1000")], "reach beyond the end"),
    ];
    for (entries, expected) in bad {
        let error = read(external(entries)).unwrap_err().to_string();
        assert!(error.contains(expected), "expected '{expected}' in: {error}");
        assert!(error.contains("tensor 'w'"), "{error}");
    }
    let error = error_of(external(&[("location", "weights.bin")]));
    assert!(error.contains("load the model by its path"), "{error}");
}
