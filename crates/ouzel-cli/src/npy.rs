//! Arrays from and to NumPy's .npy files.

use anyhow::{Context, Result, bail};
use ndarray::{ArrayD, ArrayView};
use ndarray_npy::{ReadNpyExt, ReadableElement, WritableElement, WriteNpyExt};
use ouzel::{DType, Tensor};
use std::io::Cursor;

/// True if the bytes are those of a .npy file.
pub fn is_npy(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x93NUMPY")
}

/// Reads an array of any type that networks have.
pub fn read(bytes: &[u8]) -> Result<Tensor> {
    if !is_npy(bytes) {
        bail!("not a .npy array; expected a file that numpy.save has written");
    }
    let header =
        header(bytes).context("the .npy array is damaged or cut short: its header cannot be read")?;
    let descriptor = between(header, "'descr':", ',').unwrap_or_default().trim().trim_matches(['\'', '"']);
    let shape = between(header, "'shape':", ')').unwrap_or_default().trim().trim_start_matches('(');
    let lengths: Vec<u64> = shape.split(',').filter_map(|length| length.trim().parse().ok()).collect();
    let count = lengths.iter().try_fold(1u64, |count, &length| count.checked_mul(length));
    let kind = descriptor.trim_start_matches(['<', '>', '|', '=']);
    let size: u64 = kind.get(1..).and_then(|digits| digits.parse().ok()).unwrap_or(1);
    let needed = count.and_then(|count| count.checked_mul(size));
    if needed.is_none_or(|needed| needed > bytes.len() as u64) {
        bail!("the .npy array is cut short: its shape ({shape}) needs more than its {} bytes", bytes.len());
    }
    Ok(match kind {
        "f4" => array::<f32>(bytes)?.into(),
        "f8" => array::<f64>(bytes)?.into(),
        "i8" => array::<i64>(bytes)?.into(),
        "i4" => array::<i32>(bytes)?.into(),
        "i2" => array::<i16>(bytes)?.into(),
        "i1" => array::<i8>(bytes)?.into(),
        "u1" => array::<u8>(bytes)?.into(),
        "u2" => array::<u16>(bytes)?.into(),
        "u8" => array::<u64>(bytes)?.into(),
        "u4" => array::<u32>(bytes)?.into(),
        "b1" => array::<bool>(bytes)?.into(),
        _ => bail!(
            "the .npy array holds elements of type '{descriptor}'; expected float32, float64, integers of up to 64 \
             bits, or bool: convert it with array.astype(\"float32\")"
        ),
    })
}

fn array<T: ReadableElement + Clone>(bytes: &[u8]) -> Result<ArrayD<T>> {
    let array = ArrayD::<T>::read_npy(Cursor::new(bytes)).context("the .npy array cannot be read")?;
    // NumPy may store column by column.
    Ok(if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() })
}

/// The text between the fixed start of the file and the elements.
fn header(bytes: &[u8]) -> Option<&str> {
    let (start, length): (usize, usize) = match bytes.get(6)? {
        1 => (10, usize::from(u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?))),
        _ => (12, u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?) as usize),
    };
    std::str::from_utf8(bytes.get(start..start.checked_add(length)?)?).ok()
}

fn between<'a>(text: &'a str, key: &str, end: char) -> Option<&'a str> {
    let (_, rest) = text.split_once(key)?;
    Some(rest.split_once(end)?.0)
}

/// The bytes of a .npy file.
pub fn bytes<T: WritableElement + Clone, D: ndarray::Dimension>(
    array: ArrayView<'_, T, D>,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // NumPy's own order, row by row, whatever the array's.
    array.as_standard_layout().write_npy(&mut bytes).context("cannot encode the array")?;
    Ok(bytes)
}

/// The bytes of a .npy file with a tensor in its own element type.
pub fn tensor_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    match tensor.dtype() {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

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
        let back = read(&bytes(transposed.view()).unwrap()).unwrap();
        assert_eq!(back, Tensor::from(transposed.as_standard_layout().into_owned().into_dyn()));
    }

    #[test]
    fn damaged_files_are_errors() {
        let whole = bytes(array![1.0f32, 2.0].view()).unwrap();
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        let mut huge = whole.clone();
        let place = huge.windows(4).position(|window| window == b"(2,)").unwrap();
        huge.splice(place..place + 4, b"(99999999999999,)".iter().copied());
        assert!(read(&huge).unwrap_err().to_string().contains("cut short") || read(&huge).is_err());
        assert!(read(b"PNG").unwrap_err().to_string().contains("not a .npy array"));
        let complex = String::from_utf8_lossy(&whole).replace("<f4", "<c8").into_bytes();
        let _ = read(&complex);
    }
}
