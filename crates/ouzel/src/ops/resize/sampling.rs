//! The matrix of each axis of a resize, and products with it and its transpose.

use super::axes::AxisMap;
use super::{Coordinates, Interpolation, Resampling, Rounding};
use crate::tensor::Float;
use rayon::prelude::*;

/// For each output element the input elements with their weights; an empty row lies outside.
type Rows = Vec<Vec<(usize, f64)>>;

impl Resampling {
    /// The place of the input that belongs to an element of the output.
    fn place<T: Float>(&self, map: &AxisMap, index: usize) -> T {
        let of = |value: usize| T::of(value as f64);
        let (half, scale, index, width) = (T::of(0.5), T::of(map.scale), of(index), T::of(map.width));
        let last = of(map.from - 1);
        match self.coordinates {
            Coordinates::HalfPixel => (index + half) / scale - half,
            Coordinates::HalfPixelSymmetric => {
                let offset = of(map.from) * half * (T::one() - of(map.to) / width);
                offset + (index + half) / scale - half
            }
            Coordinates::PytorchHalfPixel if map.to == 1 => T::zero(),
            Coordinates::PytorchHalfPixel => (index + half) / scale - half,
            Coordinates::Asymmetric => index / scale,
            Coordinates::AlignCorners if map.to == 1 => T::zero(),
            Coordinates::AlignCorners => index * last / (width - T::one()),
            Coordinates::TfCropAndResize => {
                let (start, end) = (T::of(map.roi.0), T::of(map.roi.1));
                match map.to {
                    1 => half * (start + end) * last,
                    _ => start * last + index * (end - start) * last / of(map.to - 1),
                }
            }
        }
    }

    /// The rows of the matrix of one axis.
    pub(super) fn rows(&self, map: &AxisMap) -> Rows {
        (0..map.to).map(|index| self.row(map, index)).collect()
    }

    fn row(&self, map: &AxisMap, index: usize) -> Vec<(usize, f64)> {
        let last = map.from as f64 - 1.0;
        let outside =
            |place: f64| self.coordinates == Coordinates::TfCropAndResize && !(0.0..=last).contains(&place);
        let clamped = |place: f64| place.clamp(0.0, last) as usize;
        let (reach, kernel): (f64, &dyn Fn(f64) -> f64) = match &self.interpolation {
            Interpolation::Nearest(rounding) => {
                // In float32 as other runtimes do: the last bit decides which element is taken.
                let place = self.place::<f32>(map, index);
                if outside(place.into()) {
                    return vec![];
                }
                let nearest = match rounding {
                    Rounding::PreferFloor => (place - 0.5).ceil(),
                    Rounding::PreferCeil => (place + 0.5).floor(),
                    Rounding::Ceil => place.ceil(),
                    Rounding::Simple if map.scale < 1.0 => place.ceil(),
                    Rounding::Floor | Rounding::Simple => place.floor(),
                };
                return vec![(clamped(nearest.into()), 1.0)];
            }
            Interpolation::Linear => (1.0, &|distance| (1.0 - distance).max(0.0)),
            Interpolation::Cubic { a } => (2.0, &|distance| cubic(distance, a.0)),
        };
        let place = self.place::<f64>(map, index);
        if outside(place) {
            return vec![];
        }
        let shrink = if self.antialias { map.scale.min(1.0) } else { 1.0 };
        // Of two elements as near, the one before counts as `base`.
        let base = place.ceil() - 1.0;
        let first = (-reach / shrink).floor() + 1.0;
        let taps = (2.0 - 2.0 * first) as usize;
        let mut row: Vec<(f64, f64)> = (0..taps)
            .map(|tap| base + first + tap as f64)
            .map(|element| (element, kernel((element - place).abs() * shrink)))
            .collect();
        if self.exclude_outside {
            row.retain(|(element, _)| (0.0..=last).contains(element));
        }
        if self.exclude_outside || self.antialias {
            let sum: f64 = row.iter().map(|(_, weight)| weight).sum();
            row.iter_mut().for_each(|(_, weight)| *weight /= sum);
        }
        row.retain(|(_, weight)| *weight != 0.0);
        row.into_iter().map(|(element, weight)| (clamped(element), weight)).collect()
    }

    /// Applies the matrix of each axis.
    pub(super) fn run<T: Float>(&self, x: &[T], shape: &[usize], maps: &[AxisMap]) -> Vec<T> {
        let mut shape = shape.to_vec();
        let mut y = x.to_vec();
        let mut empty = Vec::new();
        for map in maps {
            let rows = self.rows(map);
            y = multiply(&y, &shape, map.axis, &rows);
            shape[map.axis] = map.to;
            empty.push((map.axis, (0..map.to).filter(|&row| rows[row].is_empty()).collect::<Vec<_>>()));
        }
        for (axis, rows) in empty.iter().filter(|(_, rows)| !rows.is_empty()) {
            let inner: usize = shape[axis + 1..].iter().product();
            for slab in y.chunks_exact_mut((shape[*axis] * inner).max(1)) {
                for row in rows {
                    slab[row * inner..(row + 1) * inner].fill(T::of(self.extrapolation_value.0));
                }
            }
        }
        y
    }

    /// Applies the transposed matrix of each axis.
    pub(super) fn run_transposed<T: Float>(&self, g: &[T], shape: &[usize], maps: &[AxisMap]) -> Vec<T> {
        let mut shape = shape.to_vec();
        let mut y = g.to_vec();
        for map in maps.iter().rev() {
            let mut columns: Rows = vec![Vec::new(); map.from];
            for (row, taps) in self.rows(map).into_iter().enumerate() {
                for (element, weight) in taps {
                    columns[element].push((row, weight));
                }
            }
            y = multiply(&y, &shape, map.axis, &columns);
            shape[map.axis] = map.from;
        }
        y
    }
}

/// The cubic convolution kernel of Keys 1981.
fn cubic(distance: f64, a: f64) -> f64 {
    let d = distance;
    match d {
        d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        d if d < 2.0 => a * (((d - 5.0) * d + 8.0) * d - 4.0),
        _ => 0.0,
    }
}

/// Multiplies every lane along an axis with a sparse matrix.
fn multiply<T: Float>(x: &[T], shape: &[usize], axis: usize, rows: &Rows) -> Vec<T> {
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    let (from, to) = (shape[axis], rows.len());
    let mut y = vec![T::zero(); outer * to * inner];
    y.par_chunks_mut((to * inner).max(1)).enumerate().for_each(|(slab, y)| {
        let x = &x[slab * from * inner..(slab + 1) * from * inner];
        for (row, y) in rows.iter().zip(y.chunks_exact_mut(inner.max(1))) {
            for &(element, weight) in row {
                let weight = T::of(weight);
                for (y, &x) in y.iter_mut().zip(&x[element * inner..(element + 1) * inner]) {
                    *y += weight * x;
                }
            }
        }
    });
    y
}
