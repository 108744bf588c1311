//! Floats that begin at a cache line, so that a vector never touches two.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Floats in a line of the cache.
pub(crate) const LINE: usize = 16;

/// Floats in a huge page.
const HUGE_PAGE: usize = 512 * 1024;

/// Whether the system can be asked for huge pages.
const HAS_HUGE_PAGES: bool = cfg!(all(target_os = "linux", not(miri)));

/// Least floats of a tensor that is worth a part of a huge page.
const SMALL: usize = 4 * 1024;

/// Least floats of a tensor that has pages of its own.
const LARGE: usize = 4 * HUGE_PAGE;

/// Floats of pages that are shared.
const SHARED: usize = 16 * HUGE_PAGE;

/// Floats in a page.
const PAGE: usize = 1024;

/// How much further within a page each tensor begins than the one before it: lines.
const STAGGER: usize = 9 * LINE;

/// A number of floats that begin at a cache line, for tensors whose channels fill whole lines: a vector that touches two lines is read
/// and written as two.
///
/// ```
/// let mut floats = ouzel_kernels::Aligned::zeros(3);
/// floats[1] = 2.0;
/// assert_eq!(*floats, [0.0, 2.0, 0.0]);
/// assert_eq!(floats.as_ptr() as usize % 64, 0);
/// ```
pub struct Aligned {
    /// Where they lie, in memory of which nobody else uses this part.
    start: NonNull<f32>,
    length: usize,
    _memory: Arc<Vec<f32>>,
}

// SAFETY: the floats are owned, as those of a vector are.
unsafe impl Send for Aligned {}
// SAFETY: as above.
unsafe impl Sync for Aligned {}

impl Default for Aligned {
    fn default() -> Aligned {
        Aligned { start: NonNull::dangling(), length: 0, _memory: Arc::default() }
    }
}

impl Aligned {
    /// So many zeros, which take no time to make: the system hands out zeroed memory when it is first touched.
    ///
    /// All but the smallest tensors are kept in huge pages where the system has them (Linux), several in one if need be: weights are read
    /// once a run, and memory comes faster where the processor looks up fewer pages. What shares pages is given back together.
    ///
    /// # Panics
    /// If there are more than any memory can hold.
    pub fn zeros(length: usize) -> Aligned {
        static REST: Mutex<Option<Aligned>> = Mutex::new(None);
        if !HAS_HUGE_PAGES || !(SMALL..LARGE).contains(&length) {
            return Aligned::together([length]).pop().expect("one of one");
        }
        // A tensor that does not fill its last huge page takes a part of those that others share.
        let mut rest = REST.lock().unwrap_or_else(PoisonError::into_inner);
        let room = length.next_multiple_of(LINE) + STAGGER;
        let shared = match rest.take() {
            Some(shared) if shared.length >= room => shared,
            _ => Aligned::together([SHARED]).pop().expect("one of one"),
        };
        let Aligned { start, _memory: memory, .. } = &shared;
        let behind = NonNull::new(start.as_ptr().wrapping_add(room)).expect("invariant: a place in memory");
        let left = Aligned { start: behind, length: shared.length - room, _memory: Arc::clone(memory) };
        *rest = Some(left);
        Aligned { length, ..shared }
    }

    /// As many zeros for each length, all in one piece of memory, so that smaller tensors share huge pages too. The memory is given back
    /// with the last of them.
    ///
    /// ```
    /// let tensors = ouzel_kernels::Aligned::together([3, 5]);
    /// assert_eq!(tensors.iter().map(|tensor| tensor.len()).collect::<Vec<_>>(), [3, 5]);
    /// ```
    ///
    /// # Panics
    /// If there are more than any memory can hold.
    pub fn together(lengths: impl IntoIterator<Item = usize>) -> Vec<Aligned> {
        const TOO_MANY: &str = "more floats than memory can hold";
        let mut total = 0usize;
        let mut place = |(number, length): (usize, usize)| {
            // Tensors that all began at a page would compete for the same lines of the cache.
            let start = total + number * STAGGER % PAGE;
            let end = start.checked_add(length).and_then(|end| end.checked_next_multiple_of(LINE));
            total = end.expect(TOO_MANY);
            (start, length)
        };
        let parts: Vec<(usize, usize)> = lengths.into_iter().enumerate().map(&mut place).collect();
        let unit = if total >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        let mut values = vec![0.0f32; total.checked_add(unit).expect(TOO_MANY)];
        let shift = values.as_ptr().align_offset(unit * size_of::<f32>());
        let first = if shift < unit { shift } else { 0 };
        if unit == HUGE_PAGE {
            // Pages that are not filled would be larger than what is needed.
            ask_for_huge_pages(&mut values[first..first + total / HUGE_PAGE * HUGE_PAGE]);
        }
        let begin = values.as_mut_ptr();
        let memory = Arc::new(values);
        let part = |(start, length): (usize, usize)| {
            let start =
                NonNull::new(begin.wrapping_add(first + start)).expect("invariant: a place in memory");
            Aligned { start, length, _memory: Arc::clone(&memory) }
        };
        parts.into_iter().map(part).collect()
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
        // SAFETY: these floats lie in the memory, which lives as long as `self`, and nobody else has them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
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
        let lengths = [0, SMALL - 1, SMALL, HUGE_PAGE + 3, LARGE - 1, LARGE, LARGE + HUGE_PAGE + 3];
        for length in lengths.into_iter().chain([HUGE_PAGE; 20]) {
            let unit = if length < LARGE { LINE } else { HUGE_PAGE };
            let mut floats = Aligned::zeros(length);
            assert_eq!(floats.len(), length);
            assert_eq!(floats.as_ptr() as usize % (unit * size_of::<f32>()), 0, "of {length} floats");
            assert!(floats.iter().all(|value| *value == 0.0));
            floats.fill(1.0);
        }
    }

    #[test]
    fn those_together_are_apart() {
        for lengths in [vec![], vec![0, 0], vec![5, 0, 40, 16], vec![HUGE_PAGE, 3, HUGE_PAGE / 2]] {
            let mut all = Aligned::together(lengths.iter().copied());
            for (number, floats) in all.iter_mut().enumerate() {
                assert_eq!(floats.as_ptr() as usize % (LINE * size_of::<f32>()), 0);
                assert!(floats.iter().all(|value| *value == 0.0));
                floats.fill(1.0 + number as f32);
            }
            all.reverse();
            while let Some(floats) = all.pop() {
                let number = lengths.len() - all.len();
                assert_eq!(floats.len(), lengths[number - 1]);
                assert!(floats.iter().all(|value| *value == number as f32));
            }
        }
    }
}
