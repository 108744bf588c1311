//! The matrix unit where none is known.

use crate::amx::{Job, Pair, Soon, Strides};

/// As in `amx_x86`; there is no value of it.
#[derive(Clone, Copy)]
pub(crate) struct Amx(());

/// As in `amx_x86`.
pub(crate) struct Tiles(());

const ABSENT: &str = "invariant: nobody has a matrix unit that was not found";

impl Amx {
    pub(crate) fn detect() -> Option<Amx> {
        None
    }

    pub(crate) fn cut_rows(self, _: &[f32], _: [usize; 2], _: [usize; 2], _: &mut [f32], _: Strides) {
        unreachable!("{ABSENT}")
    }

    pub(crate) fn tiles(self, _: usize) -> Tiles {
        unreachable!("{ABSENT}")
    }
}

impl Tiles {
    pub(crate) unsafe fn cut_weights(&self, _: &mut Job) {
        unreachable!("{ABSENT}")
    }

    pub(crate) unsafe fn multiply(&self, _: Pair, _: &mut Job, _: usize, _: &mut Soon) {
        unreachable!("{ABSENT}")
    }

    pub(crate) fn any_is_not_a_number(&self, _: &[f32], _: usize) -> bool {
        unreachable!("{ABSENT}")
    }
}
