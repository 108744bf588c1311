//! The instructions of AMX, and those of AVX-512 that cut numbers for it.

use crate::aligned::OnLine;
use crate::amx::{Job, PAIRS, PART, PARTS, Pair, ROWS, SLOTS, STEP, STRETCH, Soon, Strides, Weights};
use crate::tile::{BLOCK, COLUMN};
use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Proof that AMX with bfloat16 exists, that the system lets this process use it, and that AVX-512 exists.
#[derive(Clone, Copy)]
pub(crate) struct Amx(());

/// Tiles of some height that this thread has made ready: 0 to 3 for sums, 4 and 5 for rows, 6 and 7 for weights. A thread has but one of
/// these at a time.
pub(crate) struct Tiles {
    of_this_thread: PhantomData<*const ()>,
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile.
    widths: [u16; 16],
    heights: [u8; 16],
}

/// The bits of a float that are its first part.
const HIGH: i32 = 0xffff_0000u32 as i32;

/// What is added to a float for its first part to be rounded.
const HALF: i32 = 0x8000;

impl Amx {
    /// Asks the processor and the system, once.
    pub(crate) fn detect() -> Option<Amx> {
        static IS_THERE: OnceLock<bool> = OnceLock::new();
        IS_THERE.get_or_init(|| has_instructions() && permitted()).then_some(Amx(()))
    }

    /// Cuts some rows of inputs, whose parts go where `strides` says.
    ///
    /// # Panics
    /// If rows or their parts do not lie within their slices.
    pub(crate) fn cut_rows(
        self,
        from: &[f32],
        [start, stride]: [usize; 2],
        [rows, inputs]: [usize; 2],
        to: &mut [f32],
        strides: Strides,
    ) {
        if rows == 0 || inputs == 0 {
            return;
        }
        let end = |start: usize, count: usize, stride: usize, length: usize| {
            (count - 1).checked_mul(stride).and_then(|last| last.checked_add(start)?.checked_add(length))
        };
        assert!(
            end(start, rows, stride, inputs).is_some_and(|end| end <= from.len()),
            "invariant: rows lie within the input"
        );
        let of_step = end(0, rows, strides.row, (PARTS - 1) * strides.part + PAIRS);
        let of_all = of_step.and_then(|length| end(0, inputs.div_ceil(STEP), strides.step, length));
        assert!(of_all.is_some_and(|end| end <= to.len()), "invariant: room for all parts");
        // SAFETY: the token says that the instructions exist; rows and their parts are there.
        unsafe { cut_rows(from.as_ptr().wrapping_add(start), stride, rows, inputs, to.as_mut_ptr(), strides) }
    }

    /// Makes tiles of so many rows ready.
    pub(crate) fn tiles(self, height: usize) -> Tiles {
        assert!((1..=ROWS).contains(&height), "invariant: rows of a tile");
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], widths: [0; 16], heights: [0; 16] };
        for tile in 0..8 {
            configuration.widths[tile] = (PAIRS * size_of::<f32>()) as u16;
            configuration.heights[tile] = if tile < 6 { height } else { ROWS } as u8;
        }
        // SAFETY: the token says that the instruction exists; the configuration is one that it takes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(readonly, nostack, preserves_flags));
        }
        Tiles { of_this_thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: whoever made these tiles had the instruction; nobody uses them any more.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// Whether the processor has AMX with bfloat16, and the AVX-512 that the kernels of this level use.
fn has_instructions() -> bool {
    const BFLOAT16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    // A processor that has AVX-512 has this leaf. SAFETY: as every processor of 64 bits does, this one knows the instruction.
    #[allow(unused_unsafe, reason = "newer compilers call it safe")]
    let features = || unsafe { __cpuid_count(7, 0) }.edx;
    is_x86_feature_detected!("avx512f") && features() & (BFLOAT16 | TILES) == BFLOAT16 | TILES
}

/// Asks the system for the large state of the tiles, which it saves for threads that use them only.
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that changes what this process may use, and no memory; it fails where the system does not know it.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

/// Two vectors in three parts: in each lane a part of the first one's number in the lower half, of the second one's in the upper.
#[inline]
#[target_feature(enable = "avx512f")]
fn cut(mut first: __m512, mut second: __m512) -> [__m512i; PARTS] {
    let (high, half) = (_mm512_set1_epi32(HIGH), _mm512_set1_epi32(HALF));
    let pair = |first: __m512i, second: __m512i| {
        // a | b & c
        _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(first), second, high)
    };
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts[..PARTS - 1] {
        let rounded = [first, second].map(|x| _mm512_add_epi32(_mm512_castps_si512(x), half));
        *part = pair(rounded[0], rounded[1]);
        let [a, b] = rounded.map(|bits| _mm512_castsi512_ps(_mm512_and_si512(bits, high)));
        first = _mm512_sub_ps(first, a);
        second = _mm512_sub_ps(second, b);
    }
    parts[PARTS - 1] = pair(_mm512_castps_si512(first), _mm512_castps_si512(second));
    parts
}

/// # Safety
/// So many rows of so many inputs must exist, and room for their parts.
#[target_feature(enable = "avx512f")]
unsafe fn cut_rows(
    from: *const f32,
    stride: usize,
    rows: usize,
    inputs: usize,
    to: *mut f32,
    strides: Strides,
) {
    for row in 0..rows {
        let mut from = from.wrapping_add(row * stride);
        let mut to = to.wrapping_add(row * strides.row);
        let mut left = inputs;
        while left > 0 {
            let [first, second] = match left >= STEP {
                // SAFETY: the inputs of this step.
                true => unsafe { [_mm512_loadu_ps(from), _mm512_loadu_ps(from.wrapping_add(STEP / 2))] },
                false => {
                    let lanes = [left.min(STEP / 2), left.saturating_sub(STEP / 2)].map(|n| (1u32 << n) - 1);
                    // SAFETY: those that are left.
                    unsafe {
                        [
                            _mm512_maskz_loadu_ps(lanes[0] as __mmask16, from),
                            _mm512_maskz_loadu_ps(lanes[1] as __mmask16, from.wrapping_add(STEP / 2)),
                        ]
                    }
                }
            };
            for (part, pairs) in cut(first, second).into_iter().enumerate() {
                // SAFETY: their place in the row of this step.
                unsafe { _mm512_storeu_si512(to.wrapping_add(part * strides.part).cast(), pairs) };
            }
            from = from.wrapping_add(STEP);
            to = to.wrapping_add(strides.step);
            left = left.saturating_sub(STEP);
        }
    }
}

/// In place of inputs beyond the last one.
static NOTHING: OnLine<[f32; COLUMN]> = OnLine([0.0; COLUMN]);

impl Job {
    /// Cuts the next pair of inputs, if there is one.
    ///
    /// # Safety
    /// The inputs must exist in both columns, and room for their parts.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn cut_one(&mut self) {
        let index = self.done;
        if index >= self.end {
            return;
        }
        self.done += 1;
        let (column, pair) = (index / ROWS, index % ROWS);
        let Weights { from, ahead, inputs } = self.weights[column % (2 * STRETCH)];
        let place = pair * COLUMN;
        let (mut first, mut second) =
            (from.wrapping_add(place), from.wrapping_add(place + STEP / 2 * COLUMN));
        if pair + STEP / 2 >= inputs {
            second = NOTHING.0.as_ptr();
            if pair >= inputs {
                first = second;
            }
        }
        let ahead = ahead.wrapping_add(place);
        let to = self.to.wrapping_add(column * PARTS * PART + pair * PAIRS);
        // SAFETY: as promised. Prefetching is allowed anywhere.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(STEP / 2 * COLUMN).cast());
            for (part, pairs) in cut(_mm512_loadu_ps(first), _mm512_loadu_ps(second)).into_iter().enumerate()
            {
                _mm512_storeu_si512(to.wrapping_add(part * PART).cast(), pairs);
            }
        }
    }
}

impl Soon {
    /// Asks for what some rows need.
    #[inline(always)]
    fn ask(&mut self) {
        for _ in 0..self.at_once.min(self.left) {
            let [written, read] = self.rows;
            // SAFETY: prefetching is allowed anywhere.
            unsafe {
                _mm_prefetch::<_MM_HINT_ET0>(written.cast());
                _mm_prefetch::<_MM_HINT_ET0>(written.wrapping_add(COLUMN).cast());
                _mm_prefetch::<_MM_HINT_T0>(read.cast());
                _mm_prefetch::<_MM_HINT_T0>(read.wrapping_add(COLUMN).cast());
            }
            self.left -= 1;
            self.rows = [0, 1].map(|of| self.rows[of].wrapping_add(self.strides[of]));
        }
    }
}

macro_rules! tile_load {
    ($tile:literal, $from:expr, $stride:expr) => {
        asm!(concat!("tileloadd tmm", $tile, ", [{from} + {stride}]"), from = in(reg) $from, stride = in(reg) $stride,
             options(readonly, nostack, preserves_flags))
    };
}

macro_rules! tile_store {
    ($tile:literal, $to:expr, $stride:expr) => {
        asm!(concat!("tilestored [{to} + {stride}], tmm", $tile), to = in(reg) $to, stride = in(reg) $stride,
             options(nostack, preserves_flags))
    };
}

macro_rules! tile_multiply {
    ($sums:literal, $rows:literal, $weights:literal) => {
        asm!(
            concat!("tdpbf16ps tmm", $sums, ", tmm", $rows, ", tmm", $weights),
            options(nomem, nostack, preserves_flags)
        )
    };
}

macro_rules! tile_zero {
    ($tile:literal) => {
        asm!(concat!("tilezero tmm", $tile), options(nomem, nostack, preserves_flags))
    };
}

impl Tiles {
    /// Cuts what is left of a job.
    ///
    /// # Safety
    /// As for `multiply`.
    pub(crate) unsafe fn cut_weights(&self, job: &mut Job) {
        #[target_feature(enable = "avx512f")]
        unsafe fn all(job: &mut Job) {
            while job.done < job.end {
                // SAFETY: passed on.
                unsafe { job.cut_one() };
            }
        }
        // SAFETY: whoever made these tiles had the instructions; the rest is passed on.
        unsafe { all(job) }
    }

    /// Adds the products of a pair of tiles to their sums, or makes these anew, and meanwhile does a share of a job, as one of so many
    /// parts, and asks for what is needed soon.
    ///
    /// # Safety
    /// All steps of the pair's rows and weights must exist, and the sums of its tiles, which nobody else may use; so must all of the job's
    /// inputs and the room for their parts.
    pub(crate) unsafe fn multiply(&self, pair: Pair, job: &mut Job, shares: usize, soon: &mut Soon) {
        let share = if job.done < job.end { job.end.div_ceil(shares * pair.rows.len() * SLOTS) } else { 0 };
        macro_rules! run {
            ($share:literal) => {
                // SAFETY: whoever made these tiles had the instructions; the rest is passed on.
                unsafe {
                    match pair.sums[0] == pair.sums[1] {
                        true => multiply::<false, $share>(pair, job, soon),
                        false => multiply::<true, $share>(pair, job, soon),
                    }
                }
            };
        }
        match share {
            0 => run!(0),
            1 => run!(1),
            2 => run!(2),
            3 => run!(3),
            _ => run!(6),
        }
    }

    /// Whether any of these sums, a block for each row, is not a number, of so many channels.
    pub(crate) fn any_is_not_a_number(&self, sums: &[f32], channels: usize) -> bool {
        #[target_feature(enable = "avx512f")]
        fn any(rows: &[[f32; BLOCK]], vectors: usize) -> bool {
            let mut found = 0;
            for row in rows {
                for vector in row.as_chunks::<COLUMN>().0.iter().take(vectors) {
                    // SAFETY: an array of as many floats.
                    let x = unsafe { _mm512_loadu_ps(vector.as_ptr()) };
                    found |= _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                }
            }
            found != 0
        }
        // SAFETY: as above.
        unsafe { any(sums.as_chunks().0, channels.div_ceil(COLUMN)) }
    }
}

/// `Tiles::multiply` for two tiles if PAIR, cutting SHARE pairs of inputs after each of six products.
///
/// # Safety
/// As for `Tiles::multiply`.
#[target_feature(enable = "avx512f")]
unsafe fn multiply<const PAIR: bool, const SHARE: usize>(pair: Pair, job: &mut Job, soon: &mut Soon) {
    let Pair { rows, begins, mut weights, sums, strides, is_first } = pair;
    let (stride, rows_stride) = (PAIRS * size_of::<f32>(), strides.row * size_of::<f32>());
    let sums_stride = BLOCK * size_of::<f32>();
    // SAFETY: tiles are configured as long as `Tiles` lives, and what they read and write exists, as the caller promises.
    unsafe {
        if is_first {
            tile_zero!(0);
            tile_zero!(1);
            tile_zero!(2);
            tile_zero!(3);
        } else {
            tile_load!(0, sums[0], sums_stride);
            tile_load!(1, sums[0].wrapping_add(COLUMN), sums_stride);
            if PAIR {
                tile_load!(2, sums[1], sums_stride);
                tile_load!(3, sums[1].wrapping_add(COLUMN), sums_stride);
            }
        }
        macro_rules! rows {
            ($rows:ident, $part:literal) => {
                tile_load!(4, $rows[0].wrapping_add($part * strides.part), rows_stride);
                if PAIR {
                    tile_load!(5, $rows[1].wrapping_add($part * strides.part), rows_stride);
                }
            };
        }
        macro_rules! weights {
            ($part:literal) => {
                tile_load!(6, weights.wrapping_add($part * PART), stride);
                tile_load!(7, weights.wrapping_add((PARTS + $part) * PART), stride);
            };
        }
        macro_rules! products {
            () => {
                tile_multiply!(0, 4, 6);
                tile_multiply!(1, 4, 7);
                if PAIR {
                    tile_multiply!(2, 5, 6);
                    tile_multiply!(3, 5, 7);
                }
                for _ in 0..SHARE {
                    job.cut_one();
                }
                soon.ask();
            };
        }
        for rows in rows {
            let rows = begins.map(|begin| rows.wrapping_add(begin));
            // The smallest products first, each tile loaded as seldom as there is room for.
            rows!(rows, 0);
            weights!(2);
            products!();
            weights!(1);
            products!();
            rows!(rows, 1);
            products!();
            weights!(0);
            products!();
            rows!(rows, 2);
            products!();
            rows!(rows, 0);
            products!();
            weights = weights.wrapping_add(2 * PARTS * PART);
        }
        tile_store!(0, sums[0], sums_stride);
        tile_store!(1, sums[0].wrapping_add(COLUMN), sums_stride);
        if PAIR {
            tile_store!(2, sums[1], sums_stride);
            tile_store!(3, sums[1].wrapping_add(COLUMN), sums_stride);
        }
    }
}
