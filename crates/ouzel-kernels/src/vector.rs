//! Vectors of floats behind one trait, so that each kernel is written once for all SIMD levels.

/// A proof that certain vector instructions exist, with the operations that they give.
///
/// Bits, where they appear, hold lane 0 in bit 0.
pub(crate) trait Simd: Copy {
    /// A vector of `LANES` floats.
    type Floats: Copy;
    /// How many floats a vector has; at most 16, a divisor of 16.
    const LANES: usize;
    /// How many pixels a tile has at most whose sums for two vectors of channels, or for one if `PORTABLE`, stay in registers.
    const TILE: usize;
    /// Whether `multiply_add` rounds once.
    const FUSED: bool;
    /// Whether vectors are plain arrays, of which fewer fit into registers.
    const PORTABLE: bool;

    fn splat(self, value: f32) -> Self::Floats;
    /// Loads the first `LANES` elements; panics if there are fewer.
    fn load(self, from: &[f32]) -> Self::Floats;
    /// Stores to the first `LANES` elements; panics if there are fewer.
    fn store(self, value: Self::Floats, to: &mut [f32]);
    /// Loads `from.len()` elements, at most `LANES` of them; other lanes are zero.
    fn load_partial(self, from: &[f32]) -> Self::Floats;
    /// Stores `to.len()` lanes, at most `LANES` of them.
    fn store_partial(self, value: Self::Floats, to: &mut [f32]);
    /// Loads `LANES` elements.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load_pointer(self, from: *const f32) -> Self::Floats;
    /// Stores `LANES` elements.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store_pointer(self, value: Self::Floats, to: *mut f32);

    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a - b
    fn subtract(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a * b + c
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The greater one; `b` where either is not a number.
    fn greatest(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The smaller one; `b` where either is not a number.
    fn least(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Bits of the lanes where a > b.
    fn greater(self, a: Self::Floats, b: Self::Floats) -> u32;
    /// Bits of the lanes where a >= b.
    fn greater_or_equal(self, a: Self::Floats, b: Self::Floats) -> u32;
    /// `a` where the bit is set, else `b`.
    fn select(self, bits: u32, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `yes` where a > b, else `no`.
    fn if_greater(
        self,
        a: Self::Floats,
        b: Self::Floats,
        yes: Self::Floats,
        no: Self::Floats,
    ) -> Self::Floats;
    /// |a|
    fn absolute(self, a: Self::Floats) -> Self::Floats;
    /// |a| with the sign of b.
    fn with_sign_of(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// 2ⁿ for the integer n in -126 ..= 127 that stands in the low bits of a.
    fn power_of_two(self, a: Self::Floats) -> Self::Floats;
    /// m and an integer n such that a = m · 2ⁿ with sqrt(1/2) <= m < sqrt(2), for normal positive numbers.
    fn split(self, a: Self::Floats) -> (Self::Floats, Self::Floats);
    /// a / b
    fn divide(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// In each lane: (value, place) if value > best or value is not a number, else (best, best_place).
    fn greatest_with_place(
        self,
        value: Self::Floats,
        place: Self::Floats,
        best: Self::Floats,
        best_place: Self::Floats,
    ) -> (Self::Floats, Self::Floats);
    /// `a` in the lanes where the place (the first `LANES` ones; panics if there are fewer) is the given one, else zero.
    fn where_place(self, places: &[u16], place: u16, a: Self::Floats) -> Self::Floats;
    /// The sum of all lanes, in a fixed order.
    fn sum(self, a: Self::Floats) -> f32;
    /// Asks for a cache line that will be read soon; any address is allowed, but one that is not mapped takes long.
    fn prefetch(self, address: *const f32);
    /// Asks for a cache line that will be read later, and has time to come as far as the second-level cache; as `prefetch`.
    fn prefetch_for_later(self, address: *const f32);
    /// Asks for a cache line that will be written soon; as `prefetch`.
    fn prefetch_to_write(self, address: *const f32);

    /// The first float of row ROW, below 3, in all lanes, loaded where it stands, as `multiply_add_in_order` computes.
    ///
    /// # Safety
    /// It must be readable.
    #[inline(always)]
    unsafe fn splat_in_order<const ROW: usize>(self, rows: *const f32, stride: usize) -> Self::Floats {
        // SAFETY: passed on.
        self.splat(unsafe { *rows.wrapping_add(ROW * stride) })
    }
    /// The address of the next float, computed where it stands: a compiler that counts instead, and adds the count to each of the
    /// addresses, needs twice as many instructions, which take the place of multiply-adds.
    #[inline(always)]
    fn next_in_order(self, address: *const f32) -> *const f32 {
        address.wrapping_add(1)
    }
    /// a * b + c, computed where it stands where that matters: with 28 sums in 32 registers, a compiler that loads ahead of their order
    /// runs out of registers, and stores and loads what it loaded.
    #[inline(always)]
    fn multiply_add_in_order(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        self.multiply_add(a, b, c)
    }
    /// a * b + c on single floats, rounded as `multiply_add` rounds.
    #[inline(always)]
    fn multiply_add_one(self, a: f32, b: f32, c: f32) -> f32 {
        if Self::FUSED { a.mul_add(b, c) } else { a * b + c }
    }
}

/// Plain arrays that the compiler turns into whatever vectors the target has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const PORTABLE_LANES: usize = 8;

/// The bits of the square root of 1/2.
pub(crate) const ROOT_OF_HALF: i32 = 0x3f35_04f3;

/// The bits of a float that are its mantissa.
pub(crate) const MANTISSA: i32 = 0x007f_ffff;

/// How many bits of a float are its mantissa.
pub(crate) const MANTISSA_BITS: u32 = 23;

/// The bits of 1.
pub(crate) const ONE: i32 = 0x3f80_0000;

/// Targets on which `f32::mul_add` is one instruction.
const HARDWARE_FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

impl Simd for Portable {
    type Floats = [f32; PORTABLE_LANES];
    const LANES: usize = PORTABLE_LANES;
    const TILE: usize = 4;
    const FUSED: bool = HARDWARE_FMA;
    const PORTABLE: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        [value; PORTABLE_LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::Floats {
        *from.first_chunk().expect("invariant: a whole vector to load")
    }
    #[inline(always)]
    fn store(self, value: Self::Floats, to: &mut [f32]) {
        *to.first_chunk_mut().expect("invariant: a whole vector to store to") = value;
    }
    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> Self::Floats {
        let mut value = [0.0; PORTABLE_LANES];
        for (lane, element) in value.iter_mut().zip(from) {
            *lane = *element;
        }
        value
    }
    #[inline(always)]
    fn store_partial(self, value: Self::Floats, to: &mut [f32]) {
        for (lane, element) in value.iter().zip(to) {
            *element = *lane;
        }
    }
    #[inline(always)]
    unsafe fn load_pointer(self, from: *const f32) -> Self::Floats {
        // SAFETY: the caller promises that `LANES` floats are readable; an array of floats needs no more alignment than one.
        unsafe { from.cast::<Self::Floats>().read() }
    }
    #[inline(always)]
    unsafe fn store_pointer(self, value: Self::Floats, to: *mut f32) {
        // SAFETY: the caller promises that `LANES` floats are writable; an array of floats needs no more alignment than one.
        unsafe { to.cast::<Self::Floats>().write(value) }
    }
    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    fn subtract(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane] - b[lane])
    }
    #[inline(always)]
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }
    #[inline(always)]
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| self.multiply_add_one(a[lane], b[lane], c[lane]))
    }
    #[inline(always)]
    fn greatest(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    fn least(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    fn greater(self, a: Self::Floats, b: Self::Floats) -> u32 {
        (0..PORTABLE_LANES).fold(0, |bits, lane| bits | u32::from(a[lane] > b[lane]) << lane)
    }
    #[inline(always)]
    fn greater_or_equal(self, a: Self::Floats, b: Self::Floats) -> u32 {
        (0..PORTABLE_LANES).fold(0, |bits, lane| bits | u32::from(a[lane] >= b[lane]) << lane)
    }
    #[inline(always)]
    fn select(self, bits: u32, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| if bits >> lane & 1 == 1 { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    fn if_greater(
        self,
        a: Self::Floats,
        b: Self::Floats,
        yes: Self::Floats,
        no: Self::Floats,
    ) -> Self::Floats {
        std::array::from_fn(|lane| if a[lane] > b[lane] { yes[lane] } else { no[lane] })
    }
    #[inline(always)]
    fn absolute(self, a: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane].abs())
    }
    #[inline(always)]
    fn with_sign_of(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane].copysign(b[lane]))
    }
    #[inline(always)]
    fn power_of_two(self, a: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| {
            f32::from_bits((a[lane].to_bits() << MANTISSA_BITS).wrapping_add(ONE as u32))
        })
    }
    #[inline(always)]
    fn split(self, a: Self::Floats) -> (Self::Floats, Self::Floats) {
        let bits = |lane: usize| (a[lane].to_bits() as i32).wrapping_sub(ROOT_OF_HALF);
        let mantissa = |lane: usize| (bits(lane) & MANTISSA).wrapping_add(ROOT_OF_HALF);
        (
            std::array::from_fn(|lane| f32::from_bits(mantissa(lane) as u32)),
            std::array::from_fn(|lane| (bits(lane) >> MANTISSA_BITS) as f32),
        )
    }
    #[inline(always)]
    fn divide(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane] / b[lane])
    }
    #[inline(always)]
    fn greatest_with_place(
        self,
        value: Self::Floats,
        place: Self::Floats,
        best: Self::Floats,
        best_place: Self::Floats,
    ) -> (Self::Floats, Self::Floats) {
        let (mut best, mut best_place) = (best, best_place);
        for lane in 0..PORTABLE_LANES {
            let better = (value[lane] > best[lane]) | value[lane].is_nan();
            best[lane] = if better { value[lane] } else { best[lane] };
            best_place[lane] = if better { place[lane] } else { best_place[lane] };
        }
        (best, best_place)
    }
    #[inline(always)]
    fn where_place(self, places: &[u16], place: u16, a: Self::Floats) -> Self::Floats {
        let places = &places[..PORTABLE_LANES];
        std::array::from_fn(|lane| if places[lane] == place { a[lane] } else { 0.0 })
    }
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
    #[inline(always)]
    fn prefetch_for_later(self, _: *const f32) {}
    #[inline(always)]
    fn prefetch_to_write(self, _: *const f32) {}
    #[inline(always)]
    fn sum(self, a: Self::Floats) -> f32 {
        let half: [f32; 4] = std::array::from_fn(|lane| a[lane] + a[lane + 4]);
        (half[0] + half[2]) + (half[1] + half[3])
    }
}
