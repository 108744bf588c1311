//! The order of steps in two stages: what depends on late inputs runs last, and may run again.

use super::lower::Exit;
use super::step::{Access, Argument, Step, Target, Work};
use std::collections::HashSet;

/// The steps with those that depend on late inputs behind the others, and the number of the others.
pub(crate) fn late_last(steps: Vec<Step>, late: &[usize]) -> (Vec<Step>, usize) {
    let (mut buffers, mut tensors) = (HashSet::new(), HashSet::new());
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for step in steps {
        let mut is_late = match &step.work {
            Work::Enter { input, .. } => late.contains(input),
            Work::Reference { inputs, .. } => inputs.iter().flatten().any(|argument| match argument {
                Argument::Input(input) => late.contains(input),
                Argument::Tensor(tensor) => tensors.contains(tensor),
                _ => false,
            }),
            _ => false,
        };
        step.each_buffer(|buffer, access| is_late |= access == Access::Read && buffers.contains(&buffer));
        if is_late {
            step.each_buffer(|buffer, access| {
                if access == Access::Write {
                    buffers.insert(buffer);
                }
            });
            tensors.extend(written(&step));
            second.push(step);
        } else {
            first.push(step);
        }
    }
    let count = first.len();
    first.append(&mut second);
    (first, count)
}

/// The tensors that a step computes.
fn written(step: &Step) -> Vec<usize> {
    let Work::Reference { outputs, .. } = &step.work else { return Vec::new() };
    let tensor = |target: &Target| match target {
        Target::Tensor(tensor) => Some(*tensor),
        Target::Place(_) => None,
    };
    outputs.iter().flatten().filter_map(tensor).collect()
}

/// For each step, the tensors that no later step reads, nor the same stage when it runs again.
pub(crate) fn dropped(steps: &[Step], tensors: usize, exits: &[Exit], first_late: usize) -> Vec<Vec<usize>> {
    let mut last: Vec<Option<usize>> = vec![None; tensors];
    let mut early = vec![false; tensors];
    for (index, step) in steps.iter().enumerate() {
        step.each_tensor_read(|tensor| last[tensor] = Some(index));
        written(step).into_iter().for_each(|tensor| early[tensor] = index < first_late);
    }
    for exit in exits {
        if let Exit::Argument(Argument::Tensor(tensor)) = exit {
            last[*tensor] = None;
        }
    }
    let mut dropped = vec![Vec::new(); steps.len()];
    for (tensor, last) in last.into_iter().enumerate() {
        if let Some(index) = last.filter(|&index| index < first_late || !early[tensor]) {
            dropped[index].push(tensor);
        }
    }
    dropped
}
