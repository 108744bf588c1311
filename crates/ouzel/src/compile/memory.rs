//! Shares memory out: buffers whose lives do not overlap lie in one slot.

use super::layout::BufferId;
use super::step::{Access, Buffer, BufferKind, Region, Step};
use std::sync::Arc;

/// Where a buffer lies when a plan runs.
#[derive(Clone)]
pub(crate) enum Memory {
    Floats(usize),
    Words(usize),
    Constant(Arc<Vec<f32>>),
    /// No step uses it.
    Nowhere,
}

/// How much memory a plan needs, and for what.
pub(crate) struct Allocation {
    /// For each buffer.
    pub(crate) memory: Vec<Memory>,
    /// The length of each slot of floats.
    pub(crate) floats: Vec<usize>,
    /// The length of each slot of words.
    pub(crate) words: Vec<usize>,
}

/// The first and the last step that uses a buffer.
#[derive(Clone, Copy)]
struct Life {
    first: usize,
    last: usize,
    /// The number of steps that write it.
    writes: usize,
}

/// Slots of one element type.
#[derive(Default)]
struct Slots {
    lengths: Vec<usize>,
    free: Vec<usize>,
}

impl Slots {
    /// The free slot that fits best, else the largest one, made longer, else a new one.
    fn take(&mut self, len: usize) -> usize {
        let fitting = |&(_, slot): &(usize, &usize)| self.lengths[*slot] >= len;
        let best = (self.free.iter().enumerate().filter(fitting))
            .min_by_key(|(_, slot)| self.lengths[**slot])
            .or_else(|| self.free.iter().enumerate().max_by_key(|(_, slot)| self.lengths[**slot]))
            .map(|(place, _)| place);
        match best {
            Some(place) => {
                let slot = self.free.swap_remove(place);
                self.lengths[slot] = self.lengths[slot].max(len);
                slot
            }
            None => {
                self.lengths.push(len);
                self.lengths.len() - 1
            }
        }
    }
}

/// Gives each buffer a slot. `kept` lists buffers that are read after the last step; `pinned_from` is the first step
/// that may run again without those before it: what they leave to it lives on.
pub(crate) fn allocate(
    steps: &[Step],
    buffers: &[Buffer],
    kept: &[BufferId],
    pinned_from: usize,
) -> Allocation {
    let mut lives: Vec<Option<Life>> = vec![None; buffers.len()];
    for (index, step) in steps.iter().enumerate() {
        step.each_buffer(|buffer, access| {
            let life = lives[buffer].get_or_insert(Life { first: index, last: index, writes: 0 });
            life.last = index;
            life.writes += usize::from(access == Access::Write);
        });
    }
    for &buffer in kept {
        if let Some(life) = &mut lives[buffer] {
            life.last = steps.len();
        }
    }
    for life in lives.iter_mut().flatten() {
        if life.first < pinned_from && life.last >= pinned_from {
            life.last = steps.len();
        }
    }
    let mut starts: Vec<Vec<BufferId>> = vec![Vec::new(); steps.len() + 1];
    let mut ends: Vec<Vec<BufferId>> = vec![Vec::new(); steps.len() + 1];
    for (buffer, life) in lives.iter().enumerate() {
        if let Some(life) = life {
            starts[life.first].push(buffer);
            ends[life.last].push(buffer);
        }
    }
    let mut memory: Vec<Memory> = buffers
        .iter()
        .map(|buffer| match &buffer.kind {
            BufferKind::Constant(values) => Memory::Constant(values.clone()),
            _ => Memory::Nowhere,
        })
        .collect();
    let (mut floats, mut words) = (Slots::default(), Slots::default());
    for (index, step) in steps.iter().enumerate() {
        let inherited = inheritance(step, index, &lives, buffers);
        for &buffer in &starts[index] {
            match (&buffers[buffer].kind, inherited) {
                (BufferKind::Floats, Some((from, to))) if to == buffer => memory[to] = memory[from].clone(),
                (BufferKind::Floats, _) => memory[buffer] = Memory::Floats(floats.take(buffers[buffer].len)),
                (BufferKind::Words, _) => memory[buffer] = Memory::Words(words.take(buffers[buffer].len)),
                (BufferKind::Constant(_), _) => {}
            }
        }
        for &buffer in &ends[index] {
            let passed_on = inherited.is_some_and(|(from, _)| from == buffer);
            match &memory[buffer] {
                Memory::Floats(slot) if !passed_on => floats.free.push(*slot),
                Memory::Words(slot) => words.free.push(*slot),
                _ => {}
            }
        }
    }
    Allocation { memory, floats: floats.lengths, words: words.lengths }
}

/// A buffer that is read where the result is written and that nobody needs after the step, and the buffer of the result, which may take
/// its slot.
fn inheritance(
    step: &Step,
    index: usize,
    lives: &[Option<Life>],
    buffers: &[Buffer],
) -> Option<(BufferId, BufferId)> {
    let to = step.region()?;
    let new = lives[to.buffer]?;
    let fits = |from: &Region| {
        let mut reads = 0;
        step.each_buffer(|buffer, _| reads += usize::from(buffer == from.buffer));
        matches!(buffers[from.buffer].kind, BufferKind::Floats)
            && from.view == to.view
            && buffers[from.buffer].len == buffers[to.buffer].len
            && lives[from.buffer].is_some_and(|old| old.last == index)
            && new.first == index
            && reads == 1
    };
    let from = step.read_in_place().into_iter().find(fits)?;
    Some((from.buffer, to.buffer))
}
