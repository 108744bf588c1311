//! Two vectors that are computed side by side, so that neither waits for the other.

use crate::vector::Simd;
use std::ops::{Add, Div, Mul, Sub};

/// Most lanes of a group.
pub(crate) const MOST_LANES: usize = 32;

/// Two vectors. Operations are those of numbers, lane by lane.
#[derive(Clone, Copy)]
pub(crate) struct Group<S: Simd> {
    simd: S,
    vectors: [S::Floats; 2],
}

impl<S: Simd> Group<S> {
    /// How many floats a group has.
    pub(crate) const LANES: usize = 2 * S::LANES;

    /// The proof that its instructions exist.
    #[inline(always)]
    pub(crate) fn simd(self) -> S {
        self.simd
    }

    /// The same number in each lane.
    #[inline(always)]
    pub(crate) fn splat(simd: S, value: f32) -> Self {
        Group { simd, vectors: [simd.splat(value); 2] }
    }

    /// Loads the first `LANES` elements; panics if there are fewer.
    #[inline(always)]
    pub(crate) fn load(simd: S, from: &[f32]) -> Self {
        Group { simd, vectors: [simd.load(from), simd.load(&from[S::LANES..])] }
    }

    /// Stores to the first `LANES` elements; panics if there are fewer.
    #[inline(always)]
    pub(crate) fn store(self, to: &mut [f32]) {
        self.simd.store(self.vectors[0], to);
        self.simd.store(self.vectors[1], &mut to[S::LANES..]);
    }

    /// Loads `LANES` elements.
    ///
    /// # Safety
    /// They must be readable.
    #[inline(always)]
    pub(crate) unsafe fn load_pointer(simd: S, from: *const f32) -> Self {
        // SAFETY: passed on.
        let vectors = unsafe { [simd.load_pointer(from), simd.load_pointer(from.wrapping_add(S::LANES))] };
        Group { simd, vectors }
    }

    /// Stores `LANES` elements.
    ///
    /// # Safety
    /// They must be writable.
    #[inline(always)]
    pub(crate) unsafe fn store_pointer(self, to: *mut f32) {
        // SAFETY: passed on.
        unsafe {
            self.simd.store_pointer(self.vectors[0], to);
            self.simd.store_pointer(self.vectors[1], to.wrapping_add(S::LANES));
        }
    }

    /// Applies a function to each number of the group.
    #[inline(always)]
    pub(crate) fn each(self, function: impl Fn(f32) -> f32) -> Self {
        self.each_with([self], |x, _| function(x))
    }

    /// Applies a function to each number of the group and those in the same lane of others.
    #[inline(always)]
    pub(crate) fn each_with<const N: usize>(
        self,
        others: [Self; N],
        function: impl Fn(f32, [f32; N]) -> f32,
    ) -> Self {
        let (mut lanes, mut other_lanes) = ([0.0; MOST_LANES], [[0.0; MOST_LANES]; N]);
        self.store(&mut lanes);
        for n in 0..N {
            others[n].store(&mut other_lanes[n]);
        }
        for lane in 0..Self::LANES {
            let mut of_others = [0.0; N];
            for n in 0..N {
                of_others[n] = other_lanes[n][lane];
            }
            lanes[lane] = function(lanes[lane], of_others);
        }
        Group::load(self.simd, &lanes)
    }

    /// a · b + c
    #[inline(always)]
    pub(crate) fn multiply_add(self, b: Self, c: Self) -> Self {
        let (simd, [a, a1], [b, b1], [c, c1]) = (self.simd, self.vectors, b.vectors, c.vectors);
        Group { simd, vectors: [simd.multiply_add(a, b, c), simd.multiply_add(a1, b1, c1)] }
    }

    /// a · b + c with numbers that are the same in all lanes.
    #[inline(always)]
    pub(crate) fn times_plus(self, b: f32, c: f32) -> Self {
        self.multiply_add(Group::splat(self.simd, b), Group::splat(self.simd, c))
    }

    /// The smaller one of a and a limit; what is not a number stays.
    #[inline(always)]
    pub(crate) fn at_most(self, limit: f32) -> Self {
        let (simd, [a, a1]) = (self.simd, self.vectors);
        let limit = simd.splat(limit);
        Group { simd, vectors: [simd.least(limit, a), simd.least(limit, a1)] }
    }

    /// The greater one of a and a limit; what is not a number stays.
    #[inline(always)]
    pub(crate) fn at_least(self, limit: f32) -> Self {
        let (simd, [a, a1]) = (self.simd, self.vectors);
        let limit = simd.splat(limit);
        Group { simd, vectors: [simd.greatest(limit, a), simd.greatest(limit, a1)] }
    }

    /// |a|
    #[inline(always)]
    pub(crate) fn absolute(self) -> Self {
        let (simd, [a, a1]) = (self.simd, self.vectors);
        Group { simd, vectors: [simd.absolute(a), simd.absolute(a1)] }
    }

    /// |a| with the sign of b.
    #[inline(always)]
    pub(crate) fn with_sign_of(self, b: Self) -> Self {
        let (simd, [a, a1], [b, b1]) = (self.simd, self.vectors, b.vectors);
        Group { simd, vectors: [simd.with_sign_of(a, b), simd.with_sign_of(a1, b1)] }
    }

    /// `yes` where a > limit, else `no`.
    #[inline(always)]
    pub(crate) fn if_greater(self, limit: f32, yes: Self, no: Self) -> Self {
        let (simd, [a, a1], [yes, yes1], [no, no1]) = (self.simd, self.vectors, yes.vectors, no.vectors);
        let limit = simd.splat(limit);
        Group { simd, vectors: [simd.if_greater(a, limit, yes, no), simd.if_greater(a1, limit, yes1, no1)] }
    }

    /// 2ⁿ for the integer n in -126 ..= 127 that stands in the low bits.
    #[inline(always)]
    pub(crate) fn power_of_two(self) -> Self {
        let (simd, [a, a1]) = (self.simd, self.vectors);
        Group { simd, vectors: [simd.power_of_two(a), simd.power_of_two(a1)] }
    }

    /// m and an integer n such that a = m · 2ⁿ with sqrt(1/2) <= m < sqrt(2), for normal positive numbers.
    #[inline(always)]
    pub(crate) fn split(self) -> (Self, Self) {
        let (simd, [a, a1]) = (self.simd, self.vectors);
        let ((m, n), (m1, n1)) = (simd.split(a), simd.split(a1));
        (Group { simd, vectors: [m, m1] }, Group { simd, vectors: [n, n1] })
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $operation:ident) => {
        impl<S: Simd> $trait for Group<S> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                let (simd, [a, a1], [b, b1]) = (self.simd, self.vectors, other.vectors);
                Group { simd, vectors: [simd.$operation(a, b), simd.$operation(a1, b1)] }
            }
        }
        impl<S: Simd> $trait<f32> for Group<S> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: f32) -> Self {
                self.$method(Group::splat(self.simd, other))
            }
        }
        impl<S: Simd> $trait<Group<S>> for f32 {
            type Output = Group<S>;
            #[inline(always)]
            fn $method(self, other: Group<S>) -> Group<S> {
                Group::splat(other.simd, self).$method(other)
            }
        }
    };
}

operator!(Add, add, add);
operator!(Sub, sub, subtract);
operator!(Mul, mul, multiply);
operator!(Div, div, divide);
