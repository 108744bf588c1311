//! Recognises files that are taken for ONNX models by mistake, to say what they are and what to do.

use std::path::Path;

/// How many of the first bytes [`recognize`] wants to see.
pub(crate) const HEAD: usize = 512;

const EXPORT: &str = "export the network to ONNX first";
const TORCH: &str = "export the network with torch.onnx.export first";
const KERAS: &str = "export the network with tf2onnx or Keras's model.export(…, format=\"onnx\") first";
const TENSORFLOW: &str = "convert it with tf2onnx first";
const UNPACK: &str = "unpack it first";
const FETCH: &str = "fetch the file itself";
const SWAPPED: &str = "the model comes before the pictures and arrays";

/// What begins with these bytes, if it is known and no ONNX model, and what to do about it.
///
/// `length` is the number of bytes of the whole file.
pub(crate) fn recognize(head: &[u8], length: u64) -> Option<(&'static str, &'static str)> {
    const PREFIXES: &[(&[u8], &str, &str)] = &[
        (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras's .h5", KERAS),
        (b"\x80\x02", "a Python pickle, as older torch.save writes", TORCH),
        (b"\x80\x03", "a Python pickle", TORCH),
        (b"\x80\x04", "a Python pickle", TORCH),
        (b"\x80\x05", "a Python pickle", TORCH),
        (b"\x1f\x8b", "gzip-compressed", UNPACK),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed", UNPACK),
        (b"\xfd7zXZ\0", "xz-compressed", UNPACK),
        (b"BZh", "bzip2-compressed", UNPACK),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
        (b"GGUF", "a GGUF file of weights, without the network", EXPORT),
        (b"\x93NUMPY", "a NumPy array", SWAPPED),
        (b"\x89PNG", "a PNG picture", SWAPPED),
        (b"\xff\xd8\xff", "a JPEG picture", SWAPPED),
        (b"RIFF", "a RIFF file, such as a WebP picture", SWAPPED),
        (b"GIF8", "a GIF picture", SWAPPED),
    ];
    if let Some((_, what, remedy)) = PREFIXES.iter().find(|(prefix, ..)| head.starts_with(prefix)) {
        return Some((what, remedy));
    }
    if head.starts_with(b"PK\x03\x04") {
        // The name of the first entry follows the entry's header of 30 bytes.
        let name = &head[30.min(head.len())..];
        return Some(if name.starts_with(b"metadata.json") || name.starts_with(b"config.json") {
            ("a Keras archive (.keras)", KERAS)
        } else if head.windows(8).any(|bytes| bytes == b"data.pkl") {
            ("a PyTorch archive, as torch.save writes", TORCH)
        } else {
            (
                "a zip archive, such as torch.save and Keras write",
                "unpack it, or export the network to ONNX first",
            )
        });
    }
    match head.get(4..8) {
        Some(b"TFL3") => {
            return Some(("a TensorFlow Lite model", "convert it with `tf2onnx --tflite` first"));
        }
        Some(b"ORTM") => {
            return Some((
                "a model in ONNX Runtime's own format (.ort)",
                "use the .onnx file that it was made from",
            ));
        }
        _ => {}
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some(("a tar archive", UNPACK));
    }
    if let Some((size, [b'{', b'"', ..])) = head.split_first_chunk().map(|(size, rest)| (*size, rest))
        && u64::from_le_bytes(size) < length
    {
        return Some(("a safetensors file: weights, without the network", EXPORT));
    }
    let text = head.trim_ascii_start();
    let starts =
        |with: &str| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()));
    if starts("<!doctype html") || starts("<html") {
        return Some(("a web page, perhaps of a download that went wrong", FETCH));
    }
    if starts("<?xml") {
        return Some(("XML, such as an OpenVINO model", "use the .onnx file that it was made from"));
    }
    // As protobuf, `{` and `[` begin groups, which ONNX does not use.
    if let [b'{' | b'[', ..] = text {
        return Some(("JSON or other text", EXPORT));
    }
    // Field 1 of an ONNX model is a number; where it has a length the message is another one.
    if head.starts_with(b"\x0a") {
        return Some(("a protobuf message of another kind, perhaps a TensorFlow graph (.pb)", TENSORFLOW));
    }
    None
}

/// What to say of a folder that was given for a model.
pub(crate) fn describe_folder(folder: &Path) -> String {
    if folder.join("saved_model.pb").is_file() {
        return format!("a TensorFlow SavedModel folder, expected an ONNX file: {TENSORFLOW}");
    }
    let mut models: Vec<_> = folder
        .read_dir()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx")))
        .collect();
    models.sort();
    match models.first() {
        Some(model) => format!("a folder, expected an ONNX file: perhaps {}", model.display()),
        None => "a folder, expected an ONNX file".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_mistakes_are_recognized() {
        let tar = {
            let mut bytes = vec![b'a'; 512];
            bytes[257..262].copy_from_slice(b"ustar");
            bytes
        };
        let cases: &[(&[u8], &str)] = &[
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS"),
            (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
            (b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0archive/data.pkl", "PyTorch"),
            (b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0metadata.json", "Keras"),
            (b"PK\x03\x04", "zip"),
            (b"\x80\x02\x8a\x0a", "pickle"),
            (b"\x1c\0\0\0TFL3\x14\0", "TensorFlow Lite"),
            (b"\x1c\0\0\0ORTM\x14\0", ".ort"),
            (b"\x10\0\0\0\0\0\0\0{\"a\":{}}........", "safetensors"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"  {\n  \"nodes\": []", "JSON"),
            (b"[[1, 2]]", "JSON"),
            (b"\x0a\x1d\x0a\x05input", "TensorFlow graph"),
            (b"\n<!DOCTYPE HTML><html>", "web page"),
            (b"<?xml version=\"1.0\"?>", "XML"),
            (b"\x93NUMPY\x01\0", "NumPy"),
            (b"\x89PNG\r\n\x1a\n", "PNG"),
            (&tar, "tar archive"),
        ];
        for (head, expected) in cases {
            let (what, remedy) = recognize(head, head.len() as u64).unwrap_or_else(|| panic!("{expected}"));
            assert!(what.contains(expected), "{expected}: {what}");
            assert!(!remedy.is_empty());
        }
    }

    #[test]
    fn beginnings_of_onnx_files_are_left_alone() {
        let cases: &[&[u8]] =
            &[b"", b"\x08", b"\x08\x07\x12\x07pytorch", b"\x08\x03\x12\x04CNTK\x1a\x03", b"\x3a\x02\x0a\x00"];
        for head in cases {
            assert_eq!(recognize(head, head.len() as u64), None);
        }
    }
}
