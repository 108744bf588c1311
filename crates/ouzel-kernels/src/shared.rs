//! A slice that several threads write, each its own elements.

use std::marker::PhantomData;

/// A mutable slice whose disjoint parts are handed to different threads.
///
/// Tiles of a convolution write interleaved ranges (some channels of some pixels), which `split_at_mut` cannot express.
pub(crate) struct Shared<'a, T> {
    pointer: *mut T,
    length: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<'_, T> {}

// SAFETY: the value is a mutable slice in effect, which may be sent; parts are only handed out under the condition of `part`.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above; a shared reference gives no more than a copy does.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared { pointer: slice.as_mut_ptr(), length: slice.len(), lifetime: PhantomData }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Where an element lies or would lie.
    pub(crate) fn address(&self, index: usize) -> *const T {
        self.pointer.wrapping_add(index)
    }

    /// Where the elements `start .. start + length` lie, which panics if they are out of bounds.
    #[inline(always)]
    pub(crate) fn pointer(&self, start: usize, length: usize) -> *mut T {
        assert!(
            start <= self.length && length <= self.length - start,
            "invariant: a part lies within its slice"
        );
        self.pointer.wrapping_add(start)
    }

    /// The elements `start .. start + length`, which panics if they are out of bounds.
    ///
    /// # Safety
    /// No other part that is alive may contain any of these elements.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, start: usize, length: usize) -> &mut [T] {
        // SAFETY: in bounds, from a mutable slice that lives as long as `self`, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(start, length), length) }
    }
}
