//! Floats that begin at a cache line, so that a vector never touches two.

/// Floats in a line of the cache.
const LINE: usize = 16;

/// A number of floats that begin at a cache line.
#[derive(Default)]
pub(crate) struct Packed {
    values: Vec<f32>,
    start: usize,
    length: usize,
}

impl Packed {
    /// So many zeros, which take no time to make: the system hands out zeroed memory when it is first touched.
    pub(crate) fn zeros(length: usize) -> Packed {
        let values = vec![0.0; length.checked_add(LINE).expect("packed weights are too many")];
        let shift = values.as_ptr().align_offset(LINE * size_of::<f32>());
        Packed { values, start: if shift < LINE { shift } else { 0 }, length }
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.values[self.start..self.start + self.length]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.length]
    }
}
