//! Floats that begin at a cache line, so that a vector never touches two.

use std::ops::{Deref, DerefMut};

/// Floats in a line of the cache.
pub(crate) const LINE: usize = 16;

/// Floats in a huge page.
const HUGE_PAGE: usize = 512 * 1024;

/// A number of floats that begin at a cache line, for tensors whose channels fill whole lines: a vector that touches two lines is read
/// and written as two.
///
/// ```
/// let mut floats = ouzel_kernels::Aligned::zeros(3);
/// floats[1] = 2.0;
/// assert_eq!(*floats, [0.0, 2.0, 0.0]);
/// assert_eq!(floats.as_ptr() as usize % 64, 0);
/// ```
#[derive(Default)]
pub struct Aligned {
    values: Vec<f32>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// So many zeros, which take no time to make: the system hands out zeroed memory when it is first touched.
    ///
    /// Large tensors begin at a huge page and are kept in such pages where the system has them (Linux): weights are read once a run, and
    /// memory comes faster where the processor looks up fewer pages.
    ///
    /// # Panics
    /// If there are more than any memory can hold.
    pub fn zeros(length: usize) -> Aligned {
        let unit = if length >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        let mut values = vec![0.0; length.checked_add(unit).expect("more floats than memory can hold")];
        let shift = values.as_ptr().align_offset(unit * size_of::<f32>());
        let start = if shift < unit { shift } else { 0 };
        if unit == HUGE_PAGE {
            // Pages that are not filled would be larger than what is needed.
            ask_for_huge_pages(&mut values[start..start + length / HUGE_PAGE * HUGE_PAGE]);
        }
        Aligned { values, start, length }
    }
}

/// Asks the system to keep these floats in huge pages; it may not.
#[cfg(all(target_os = "linux", not(miri)))]
fn ask_for_huge_pages(values: &mut [f32]) {
    unsafe extern "C" {
        fn madvise(address: *mut std::ffi::c_void, length: usize, advice: std::ffi::c_int)
        -> std::ffi::c_int;
    }
    const MADV_HUGEPAGE: std::ffi::c_int = 14;
    // SAFETY: the function of the C library that the standard library links; this advice changes what no program sees, and the range is
    // ours. It begins at a page, as the function wants, or else nothing happens.
    unsafe { madvise(values.as_mut_ptr().cast(), size_of_val(values), MADV_HUGEPAGE) };
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn ask_for_huge_pages(_: &mut [f32]) {}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..self.start + self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.length]
    }
}

/// Scratch on the stack that begins at a cache line.
#[repr(C, align(64))]
pub(crate) struct OnLine<T>(pub T);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_ones_begin_where_they_should_and_hold_zeros() {
        for (length, unit) in
            [(0, LINE), (HUGE_PAGE - 1, LINE), (HUGE_PAGE, HUGE_PAGE), (2 * HUGE_PAGE + 3, HUGE_PAGE)]
        {
            let mut floats = Aligned::zeros(length);
            assert_eq!(floats.len(), length);
            assert_eq!(floats.as_ptr() as usize % (unit * size_of::<f32>()), 0, "of {length} floats");
            assert!(floats.iter().all(|value| *value == 0.0));
            floats.fill(1.0);
        }
    }
}
