//! The vectors of x86-64 processors: AVX-512, and AVX2 with fused multiply-add.

use crate::vector::{MANTISSA, MANTISSA_BITS, ONE, ROOT_OF_HALF, Simd};
use std::arch::asm;
use std::arch::x86_64::*;

/// Proof that AVX-512 (F, BW, DQ, VL), AVX2 and FMA exist.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Proof that AVX2 and FMA exist.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx512 {
    /// # Safety
    /// The processor must have avx512f, avx512bw, avx512dq, avx512vl, avx2 and fma.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Avx512(())
    }
}

impl Avx2 {
    /// # Safety
    /// The processor must have avx2 and fma.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Avx2(())
    }
}

/// Calls an intrinsic that is unsafe only because its instructions might not exist.
macro_rules! by_token {
    ($call:expr) => {
        // SAFETY: a value of the token type exists only where its instructions do, and the call has no other condition.
        unsafe { $call }
    };
}

/// The first float of row ROW, below 3, in all lanes. In assembly, so that it stays where it stands, and three rows need but two registers
/// for their addresses.
///
/// # Safety
/// It must be readable, and the processor must have avx512f.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn splat_here<const ROW: usize>(rows: *const f32, stride: usize) -> __m512 {
    const { assert!(ROW < 3) };
    let x: __m512;
    macro_rules! load {
        ($address:literal $(, $stride:ident)?) => {
            // SAFETY: the instruction reads the float that the caller promises, and nothing else.
            unsafe {
                asm!(
                    concat!("vbroadcastss {x}, dword ptr [", $address, "]"),
                    x = lateout(zmm_reg) x,
                    rows = in(reg) rows,
                    $($stride = in(reg) $stride,)?
                    options(readonly, nostack, preserves_flags)
                )
            }
        };
    }
    match ROW {
        0 => load!("{rows}"),
        1 => load!("{rows} + 4 * {stride}", stride),
        _ => load!("{rows} + 8 * {stride}", stride),
    }
    x
}

/// a * b + c. In assembly, so that it stays where it stands.
///
/// # Safety
/// The processor must have avx512f.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_add_here(a: __m512, b: __m512, mut c: __m512) -> __m512 {
    // SAFETY: the instruction touches three registers.
    unsafe {
        asm!(
            "vfmadd231ps {c}, {a}, {b}",
            c = inlateout(zmm_reg) c,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(nomem, nostack, preserves_flags)
        );
    }
    c
}

/// The address of the next float, by an instruction that the compiler sees nothing of.
#[inline(always)]
fn next_here(address: *const f32) -> *const f32 {
    address.map_addr(|mut address| {
        // SAFETY: the instruction touches one register and the flags.
        unsafe { asm!("add {address}, 4", address = inlateout(reg) address, options(pure, nomem, nostack)) };
        address
    })
}

impl Simd for Avx512 {
    type Floats = __m512;
    const LANES: usize = 16;
    const TILE: usize = 14;
    const FUSED: bool = true;
    const PORTABLE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        by_token!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        assert!(from.len() >= 16, "invariant: a whole vector to load");
        // SAFETY: the token proves the instruction, the assertion that 16 floats can be read.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32]) {
        assert!(to.len() >= 16, "invariant: a whole vector to store to");
        // SAFETY: the token proves the instruction, the assertion that 16 floats can be written.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> __m512 {
        let mask = ((1u32 << from.len().min(16)) - 1) as __mmask16;
        // SAFETY: the token proves the instruction; it touches only the lanes of the mask, which are within the slice.
        unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }
    }
    #[inline(always)]
    fn store_partial(self, value: __m512, to: &mut [f32]) {
        let mask = ((1u32 << to.len().min(16)) - 1) as __mmask16;
        // SAFETY: the token proves the instruction; it touches only the lanes of the mask, which are within the slice.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask, value) }
    }
    #[inline(always)]
    unsafe fn load_pointer(self, from: *const f32) -> __m512 {
        // SAFETY: the token proves the instruction, the caller that 16 floats can be read.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_pointer(self, value: __m512, to: *mut f32) {
        // SAFETY: the token proves the instruction, the caller that 16 floats can be written.
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn subtract(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn multiply(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        by_token!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    unsafe fn splat_in_order<const ROW: usize>(self, rows: *const f32, stride: usize) -> __m512 {
        // SAFETY: the token proves the instruction, the caller that the float can be read.
        unsafe { splat_here::<ROW>(rows, stride) }
    }
    #[inline(always)]
    fn next_in_order(self, address: *const f32) -> *const f32 {
        next_here(address)
    }
    #[inline(always)]
    fn multiply_add_in_order(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        by_token!(multiply_add_here(a, b, c))
    }
    #[inline(always)]
    fn greatest(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn least(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn greater(self, a: __m512, b: __m512) -> u32 {
        u32::from(by_token!(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b)))
    }
    #[inline(always)]
    fn greater_or_equal(self, a: __m512, b: __m512) -> u32 {
        u32::from(by_token!(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b)))
    }
    #[inline(always)]
    fn select(self, bits: u32, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_mask_blend_ps(bits as __mmask16, b, a))
    }
    #[inline(always)]
    fn prefetch(self, address: *const f32) {
        // SAFETY: a prefetch touches no memory in a way that a program could see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    fn prefetch_for_later(self, address: *const f32) {
        // SAFETY: as for `prefetch`.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
    #[inline(always)]
    fn prefetch_to_write(self, address: *const f32) {
        // SAFETY: as for `prefetch`.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(address.cast()) }
    }
    #[inline(always)]
    fn if_greater(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        by_token!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), no, yes))
    }
    #[inline(always)]
    fn absolute(self, a: __m512) -> __m512 {
        by_token!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn with_sign_of(self, a: __m512, b: __m512) -> __m512 {
        by_token!({
            let sign = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
        })
    }
    #[inline(always)]
    fn power_of_two(self, a: __m512) -> __m512 {
        by_token!({
            let exponent = _mm512_slli_epi32::<MANTISSA_BITS>(_mm512_castps_si512(a));
            _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(ONE)))
        })
    }
    #[inline(always)]
    fn split(self, a: __m512) -> (__m512, __m512) {
        by_token!({
            let root = _mm512_set1_epi32(ROOT_OF_HALF);
            let bits = _mm512_sub_epi32(_mm512_castps_si512(a), root);
            let mantissa = _mm512_and_si512(bits, _mm512_set1_epi32(MANTISSA));
            let mantissa = _mm512_castsi512_ps(_mm512_add_epi32(mantissa, root));
            (mantissa, _mm512_cvtepi32_ps(_mm512_srai_epi32::<MANTISSA_BITS>(bits)))
        })
    }
    #[inline(always)]
    fn divide(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn greatest_with_place(
        self,
        value: __m512,
        place: __m512,
        best: __m512,
        best_place: __m512,
    ) -> (__m512, __m512) {
        by_token!({
            let better = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(value, best)
                | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            (_mm512_mask_blend_ps(better, best, value), _mm512_mask_blend_ps(better, best_place, place))
        })
    }
    #[inline(always)]
    fn where_place(self, places: &[u16], place: u16, a: __m512) -> __m512 {
        assert!(places.len() >= 16, "invariant: a place for each lane");
        // SAFETY: the token proves the instructions, the assertion that 16 places can be read.
        unsafe {
            let places = _mm256_loadu_si256(places.as_ptr().cast());
            let equal = _mm256_cmpeq_epi16_mask(places, _mm256_set1_epi16(place as i16));
            _mm512_maskz_mov_ps(equal, a)
        }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        let half = by_token!(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)));
        Avx2(()).sum(half)
    }
}

impl Avx2 {
    /// All bits of the first `count` lanes, none of the others.
    #[inline(always)]
    fn first_lanes(self, count: usize) -> __m256i {
        by_token!(_mm256_cmpgt_epi32(
            _mm256_set1_epi32(count.min(8) as i32),
            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
        ))
    }
}

impl Simd for Avx2 {
    type Floats = __m256;
    const LANES: usize = 8;
    const TILE: usize = 6;
    const FUSED: bool = true;
    const PORTABLE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        by_token!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        assert!(from.len() >= 8, "invariant: a whole vector to load");
        // SAFETY: the token proves the instruction, the assertion that 8 floats can be read.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, value: __m256, to: &mut [f32]) {
        assert!(to.len() >= 8, "invariant: a whole vector to store to");
        // SAFETY: the token proves the instruction, the assertion that 8 floats can be written.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> __m256 {
        // SAFETY: the token proves the instruction; it touches only the lanes of the mask, which are within the slice.
        unsafe { _mm256_maskload_ps(from.as_ptr(), self.first_lanes(from.len())) }
    }
    #[inline(always)]
    fn store_partial(self, value: __m256, to: &mut [f32]) {
        // SAFETY: the token proves the instruction; it touches only the lanes of the mask, which are within the slice.
        unsafe { _mm256_maskstore_ps(to.as_mut_ptr(), self.first_lanes(to.len()), value) }
    }
    #[inline(always)]
    unsafe fn load_pointer(self, from: *const f32) -> __m256 {
        // SAFETY: the token proves the instruction, the caller that 8 floats can be read.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_pointer(self, value: __m256, to: *mut f32) {
        // SAFETY: the token proves the instruction, the caller that 8 floats can be written.
        unsafe { _mm256_storeu_ps(to, value) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn subtract(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn multiply(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn multiply_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        by_token!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn greatest(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn least(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn greater(self, a: __m256, b: __m256) -> u32 {
        by_token!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b))) as u32
    }
    #[inline(always)]
    fn greater_or_equal(self, a: __m256, b: __m256) -> u32 {
        by_token!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a, b))) as u32
    }
    #[inline(always)]
    fn select(self, bits: u32, a: __m256, b: __m256) -> __m256 {
        by_token!({
            let lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let set =
                _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits as i32), lane_bit), lane_bit);
            _mm256_blendv_ps(b, a, _mm256_castsi256_ps(set))
        })
    }
    #[inline(always)]
    fn prefetch(self, address: *const f32) {
        // SAFETY: a prefetch touches no memory in a way that a program could see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    fn prefetch_for_later(self, address: *const f32) {
        // SAFETY: as for `prefetch`.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
    #[inline(always)]
    fn prefetch_to_write(self, address: *const f32) {
        // SAFETY: as for `prefetch`.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(address.cast()) }
    }
    #[inline(always)]
    fn if_greater(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        by_token!(_mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_GT_OQ>(a, b)))
    }
    #[inline(always)]
    fn absolute(self, a: __m256) -> __m256 {
        by_token!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn with_sign_of(self, a: __m256, b: __m256) -> __m256 {
        by_token!({
            let sign = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b))
        })
    }
    #[inline(always)]
    fn power_of_two(self, a: __m256) -> __m256 {
        by_token!({
            let exponent = _mm256_slli_epi32::<{ MANTISSA_BITS as i32 }>(_mm256_castps_si256(a));
            _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(ONE)))
        })
    }
    #[inline(always)]
    fn split(self, a: __m256) -> (__m256, __m256) {
        by_token!({
            let root = _mm256_set1_epi32(ROOT_OF_HALF);
            let bits = _mm256_sub_epi32(_mm256_castps_si256(a), root);
            let mantissa = _mm256_and_si256(bits, _mm256_set1_epi32(MANTISSA));
            let mantissa = _mm256_castsi256_ps(_mm256_add_epi32(mantissa, root));
            (mantissa, _mm256_cvtepi32_ps(_mm256_srai_epi32::<{ MANTISSA_BITS as i32 }>(bits)))
        })
    }
    #[inline(always)]
    fn divide(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn greatest_with_place(
        self,
        value: __m256,
        place: __m256,
        best: __m256,
        best_place: __m256,
    ) -> (__m256, __m256) {
        by_token!({
            let greater = _mm256_cmp_ps::<_CMP_GT_OQ>(value, best);
            let better = _mm256_or_ps(greater, _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
            (_mm256_blendv_ps(best, value, better), _mm256_blendv_ps(best_place, place, better))
        })
    }
    #[inline(always)]
    fn where_place(self, places: &[u16], place: u16, a: __m256) -> __m256 {
        assert!(places.len() >= 8, "invariant: a place for each lane");
        // SAFETY: the token proves the instructions, the assertion that 8 places can be read.
        unsafe {
            let places = _mm_loadu_si128(places.as_ptr().cast());
            let equal = _mm_cmpeq_epi16(places, _mm_set1_epi16(place as i16));
            _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_cvtepi16_epi32(equal)))
        }
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        by_token!({
            let half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)))
        })
    }
}
