//! Arrays from and to NumPy's .npy files: a line of text, a Python dictionary, and then the elements.

use anyhow::{Context, Result, bail, ensure};
use ndarray::{ArrayD, ArrayView, Dimension, IxDyn, ShapeBuilder};
use ouzel::{DType, Tensor};

/// What every file begins with.
const MAGIC: &[u8] = b"\x93NUMPY";

/// The elements begin at a multiple of this.
const ALIGNMENT: usize = 64;

/// True if the bytes are those of a .npy file.
pub fn is_npy(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// A type of elements.
pub trait Element: Copy {
    /// Its name without the order of its bytes.
    const KIND: &str;
    /// An element of as many bytes as it has.
    fn from_bytes(bytes: &[u8], is_big_endian: bool) -> Self;
    fn push_little_endian(self, to: &mut Vec<u8>);
}

macro_rules! elements {
    ($($Type:ty, $kind:literal;)*) => { $(
        impl Element for $Type {
            const KIND: &str = $kind;
            fn from_bytes(bytes: &[u8], is_big_endian: bool) -> Self {
                let bytes = bytes.try_into().expect("invariant: as many bytes as an element has");
                if is_big_endian { Self::from_be_bytes(bytes) } else { Self::from_le_bytes(bytes) }
            }
            fn push_little_endian(self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }
        }
    )* };
}

elements! {
    f32, "f4";
    f64, "f8";
    i8, "i1";
    i16, "i2";
    i32, "i4";
    i64, "i8";
    u8, "u1";
    u16, "u2";
    u32, "u4";
    u64, "u8";
}

impl Element for bool {
    const KIND: &str = "b1";
    fn from_bytes(bytes: &[u8], _: bool) -> Self {
        bytes != [0]
    }
    fn push_little_endian(self, to: &mut Vec<u8>) {
        to.push(self.into());
    }
}

/// Reads an array of any type that networks have.
pub fn read(bytes: &[u8]) -> Result<Tensor> {
    ensure!(is_npy(bytes), "not a .npy array; expected a file that numpy.save has written");
    let (header, elements) =
        parts(bytes).context("the .npy array is damaged or cut short: its header cannot be read")?;
    let value = |key: &str| {
        value(header, key).with_context(|| format!("the .npy array is damaged: its header has no '{key}'"))
    };
    let (descriptor, shape) = (value("descr")?.trim_matches(['\'', '"']), value("shape")?);
    let lengths: Option<Vec<usize>> = shape
        .trim_matches(['(', ')'])
        .split(',')
        .map(str::trim)
        .filter(|length| !length.is_empty())
        .map(|length| length.parse().ok())
        .collect();
    let lengths = lengths.with_context(|| format!("the .npy array is damaged: its shape is {shape}"))?;
    let by_columns = value("fortran_order")? == "True";
    let is_big_endian = descriptor.starts_with('>');
    macro_rules! array {
        ($($Type:ty)*) => {
            match descriptor.trim_start_matches(['<', '>', '|', '=']) {
                $(<$Type>::KIND => array::<$Type>(elements, &lengths, is_big_endian, by_columns)?.into(),)*
                _ => bail!(
                    "the .npy array holds elements of type '{descriptor}'; expected float32, float64, integers of up to 64 \
                     bits, or bool: convert it with array.astype(\"float32\")"
                ),
            }
        };
    }
    Ok(array!(f32 f64 i8 i16 i32 i64 u8 u16 u32 u64 bool))
}

fn array<T: Element>(
    elements: &[u8],
    lengths: &[usize],
    is_big_endian: bool,
    by_columns: bool,
) -> Result<ArrayD<T>> {
    let needed = lengths.iter().try_fold(size_of::<T>(), |size, &length| size.checked_mul(length));
    if needed != Some(elements.len()) {
        let found = elements.len();
        let is_short = needed.is_none_or(|needed| needed > found);
        let problem = if is_short { "is cut short" } else { "is longer than its shape" };
        bail!(
            "the .npy array {problem}: the shape {lengths:?} does not fit the {found} bytes of its elements"
        );
    }
    let elements: Vec<T> =
        elements.chunks_exact(size_of::<T>()).map(|bytes| T::from_bytes(bytes, is_big_endian)).collect();
    let array = ArrayD::from_shape_vec(IxDyn(lengths).set_f(by_columns), elements)?;
    Ok(if by_columns { array.as_standard_layout().into_owned() } else { array })
}

/// The text between the fixed start of the file and the elements, and these.
fn parts(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (start, length): (usize, usize) = match bytes.get(6)? {
        1 => (10, usize::from(u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?))),
        _ => (12, u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?) as usize),
    };
    let end = start.checked_add(length)?;
    Some((std::str::from_utf8(bytes.get(start..end)?).ok()?, &bytes[end..]))
}

/// What a dictionary says of a key: a tuple, or text without a comma.
fn value<'a>(dictionary: &'a str, key: &str) -> Option<&'a str> {
    let mut places =
        ['\'', '"'].into_iter().filter_map(|quote| dictionary.split_once(&format!("{quote}{key}{quote}")));
    let value = places.next()?.1.trim_start().strip_prefix(':')?.trim_start();
    let end = match value.starts_with('(') {
        true => value.find(')')? + 1,
        false => value.find([',', '}'])?,
    };
    Some(value[..end].trim_end())
}

/// The bytes of a .npy file.
pub fn bytes<T: Element, D: Dimension>(array: ArrayView<'_, T, D>) -> Vec<u8> {
    let order = if size_of::<T>() == 1 { '|' } else { '<' };
    let lengths: Vec<String> = array.shape().iter().map(usize::to_string).collect();
    let comma = if lengths.len() == 1 { "," } else { "" };
    let mut header = format!(
        "{{'descr': '{order}{}', 'fortran_order': False, 'shape': ({}{comma}), }}",
        T::KIND,
        lengths.join(", ")
    );
    let start = MAGIC.len() + 4;
    let padded = (start + header.len() + 1).next_multiple_of(ALIGNMENT) - start - 1;
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    header.push('\n');
    let mut bytes = Vec::with_capacity(start + header.len() + array.len() * size_of::<T>());
    bytes.extend(MAGIC);
    bytes.extend([1, 0]);
    let length = u16::try_from(header.len()).expect("invariant: arrays have few axes");
    bytes.extend(length.to_le_bytes());
    bytes.extend(header.as_bytes());
    // NumPy's own order, row by row, whatever the array's.
    array.iter().for_each(|element| element.push_little_endian(&mut bytes));
    bytes
}

/// The bytes of a .npy file with a tensor in its own element type.
pub fn tensor_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    Ok(match tensor.dtype() {
        DType::F32 => bytes(tensor.array::<f32>()?.view()),
        DType::F64 => bytes(tensor.array::<f64>()?.view()),
        DType::I64 => bytes(tensor.array::<i64>()?.view()),
        DType::I32 => bytes(tensor.array::<i32>()?.view()),
        DType::I16 => bytes(tensor.array::<i16>()?.view()),
        DType::I8 => bytes(tensor.array::<i8>()?.view()),
        DType::U64 => bytes(tensor.array::<u64>()?.view()),
        DType::U32 => bytes(tensor.array::<u32>()?.view()),
        DType::U16 => bytes(tensor.array::<u16>()?.view()),
        DType::U8 => bytes(tensor.array::<u8>()?.view()),
        DType::Bool => bytes(tensor.array::<bool>()?.view()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use ndarray_npy::{ReadNpyExt, WriteNpyExt};

    #[test]
    fn every_type_comes_back() {
        for tensor in [
            Tensor::from(array![[1.5f32, -2.0]].into_dyn()),
            Tensor::from(array![1.5f64].into_dyn()),
            Tensor::from(array![[1i64], [2]].into_dyn()),
            Tensor::from(array![7u8].into_dyn()),
            Tensor::vector([-7i16, 7]),
            Tensor::vector([u64::MAX]),
            Tensor::from(array![true, false].into_dyn()),
            Tensor::scalar(3i32),
        ] {
            assert_eq!(read(&tensor_bytes(&tensor).unwrap()).unwrap(), tensor);
        }
        let transposed = array![[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]].reversed_axes();
        let back = read(&bytes(transposed.view())).unwrap();
        assert_eq!(back, Tensor::from(transposed.as_standard_layout().into_owned().into_dyn()));
    }

    #[test]
    fn another_library_reads_and_writes_the_same() {
        let array = ndarray::Array::from_shape_fn((2, 3, 4), |(z, y, x)| (z * 12 + y * 4 + x) as f32);
        let ours = bytes(array.view());
        assert_eq!(ours.len() % ALIGNMENT, 24 * 4 % ALIGNMENT);
        assert_eq!(ArrayD::<f32>::read_npy(&ours[..]).unwrap(), array.clone().into_dyn());
        let mut theirs = Vec::new();
        array.write_npy(&mut theirs).unwrap();
        assert_eq!(read(&theirs).unwrap(), Tensor::from(array.clone().into_dyn()));
        // Column by column.
        let mut turned = Vec::new();
        array.t().write_npy(&mut turned).unwrap();
        assert!(String::from_utf8_lossy(&turned).contains("'fortran_order': True"));
        let expected = array.t().as_standard_layout().into_owned().into_dyn();
        assert_eq!(read(&turned).unwrap(), Tensor::from(expected));
    }

    #[test]
    fn headers_of_other_writers_are_read() {
        let elements: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|x| x.to_be_bytes()).collect();
        let header = "{\"shape\":(2 ,),\"fortran_order\":False,\"descr\":\">f8\"}\n";
        let mut file = [MAGIC, &[2, 0], &(header.len() as u32).to_le_bytes(), header.as_bytes()].concat();
        file.extend(&elements);
        assert_eq!(read(&file).unwrap(), Tensor::vector([1.5f64, -2.0]));
    }

    #[test]
    fn damaged_files_are_errors() {
        let whole = bytes(array![1.0f32, 2.0].view());
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        let with = |from: &[u8], to: &[u8]| {
            let place = whole.windows(from.len()).position(|window| window == from).unwrap();
            [&whole[..place], to, &whole[place + from.len()..]].concat()
        };
        let message = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        // The header stays as long as it was, so that only the shape is wrong.
        for shape in ["(-2,), }", "(3,), } ", "(2, 2),}", "(2 2), }", "(99999999999999,), }"] {
            let damaged = with(&b"(2,), }                "[..shape.len()], shape.as_bytes());
            assert!(message(&damaged).contains("shape"), "{shape}: {}", message(&damaged));
        }
        assert!(message(&with(b"shape", b"Shape")).contains("no 'shape'"));
        assert!(message(&with(b"<f4", b"<c8")).contains("type '<c8'"));
        assert!(message(&[&whole[..], &[0]].concat()).contains("longer than its shape"));
        assert!(message(b"PNG").contains("not a .npy array"));
    }
}
