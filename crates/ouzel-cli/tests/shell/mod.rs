//! Runs the real binary in a folder of its own.
#![allow(dead_code, missing_docs, reason = "shared by test files that each use a part of it")]

use ndarray::{Array, ArrayD, Dimension};
use ndarray_npy::{ReadNpyExt, ReadableElement, WritableElement, WriteNpyExt};
use serde_json::Value;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder that goes away with the test.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ouzel-cli-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path(name), bytes).unwrap();
        self
    }

    pub fn write_npy<T: WritableElement, D: Dimension>(&self, name: &str, array: &Array<T, D>) -> &Self {
        self.write(name, npy(array))
    }

    /// A picture of a smooth pattern.
    pub fn write_picture(&self, name: &str, height: usize, width: usize) -> &Self {
        let rgb = ndarray::Array3::from_shape_fn((height, width, 3), |(row, column, channel)| {
            (row * 29 + column * (13 + channel * 7) + channel * 50) as u8
        });
        ouzel::image::save_png(self.path(name), rgb.view()).unwrap();
        self
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name))
            .unwrap_or_else(|error| panic!("{name}: {error}; there is {:?}", self.files()))
    }

    pub fn read_npy<T: ReadableElement>(&self, name: &str) -> ArrayD<T> {
        ArrayD::read_npy(Cursor::new(self.read(name))).unwrap()
    }

    pub fn read_json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    /// Height and width of a picture.
    pub fn picture_size(&self, name: &str) -> (usize, usize) {
        let picture = ouzel::image::Picture::open(self.path(name)).unwrap();
        (picture.height(), picture.width())
    }

    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Starts a command line; words are separated by spaces, and `@NAME` is a file of `tests/data`, `@@NAME` one of
    /// `assets`.
    pub fn ouzel(&self, line: &str) -> Cmd {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ouzel"));
        command.current_dir(&self.0).env_remove("OUZEL_SIMD");
        Cmd { command, stdin: Vec::new() }.words(line)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A command line on its way.
pub struct Cmd {
    command: Command,
    stdin: Vec<u8>,
}

impl Cmd {
    pub fn words(mut self, line: &str) -> Self {
        for word in line.split_whitespace() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
            match (word.strip_prefix("@@"), word.strip_prefix('@')) {
                (Some(name), _) => self.command.arg(folder.join("../../assets").join(name)),
                (None, Some(name)) => self.command.arg(folder.join("tests/data").join(name)),
                (None, None) => self.command.arg(word),
            };
        }
        self
    }

    /// One argument that may have spaces in it.
    pub fn word(mut self, word: &str) -> Self {
        self.command.arg(word);
        self
    }

    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = bytes;
        self
    }

    pub fn run(mut self) -> Ran {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stdin = child.stdin.take().unwrap();
        let bytes = std::mem::take(&mut self.stdin);
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!stderr.contains("panicked"), "{stderr}");
        Ran { code: output.status.code(), stdout: output.stdout, stderr }
    }

    /// Runs what must succeed.
    pub fn succeeds(self) -> Ran {
        let ran = self.run();
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran
    }

    /// Runs what must fail with this code, and with a message that has all of these parts.
    pub fn fails(self, code: i32, parts: &[&str]) -> Ran {
        let ran = self.run();
        assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        assert!(ran.stderr.contains("error: "), "{}", ran.stderr);
        for part in parts {
            assert!(ran.stderr.contains(part), "{part:?} is missing in: {}", ran.stderr);
        }
        ran
    }
}

/// What came out.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn npy<T: ReadableElement>(&self) -> ArrayD<T> {
        ArrayD::read_npy(Cursor::new(&self.stdout)).unwrap()
    }
}

pub fn npy<T: WritableElement, D: Dimension>(array: &Array<T, D>) -> Vec<u8> {
    let mut bytes = Vec::new();
    array.write_npy(&mut bytes).unwrap();
    bytes
}

/// An array of values that are neither regular nor random.
pub fn values(shape: &[usize]) -> ArrayD<f32> {
    let mut state = 1u32;
    ArrayD::from_shape_simple_fn(shape.to_vec(), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 24) as f32 - 0.3
    })
}
