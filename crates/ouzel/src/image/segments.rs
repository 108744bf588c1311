//! Segmentation of pictures into regions of like color (Felzenszwalb and Huttenlocher 2004).

use ndarray::{Array2, ArrayView3};

/// The neighbors of a pixel, each pair once: right, below, and the two diagonals.
const NEIGHBORS: [(isize, isize); 4] = [(0, 1), (1, 0), (1, 1), (-1, 1)];

/// A picture as a graph: pairs of neighbors, those of most alike colors first.
#[derive(Debug)]
pub(crate) struct Neighbors {
    size: (usize, usize),
    pairs: Vec<(f64, u32, u32)>,
}

impl Neighbors {
    /// The neighbors in a picture `[height, width, channels]`; their difference is the distance of their colors.
    pub(crate) fn new(picture: ArrayView3<'_, f64>) -> Self {
        let (height, width, channels) = picture.dim();
        let mut pairs = Vec::with_capacity(4 * height * width);
        for row in 0..height {
            for column in 0..width {
                for (down, right) in NEIGHBORS {
                    let (there, beside) = (row as isize + down, column as isize + right);
                    if !(0..height as isize).contains(&there) || beside >= width as isize {
                        continue;
                    }
                    let (there, beside) = (there as usize, beside as usize);
                    let difference =
                        |channel: usize| picture[[row, column, channel]] - picture[[there, beside, channel]];
                    let square: f64 = (0..channels).map(|channel| difference(channel).powi(2)).sum();
                    let place = |row: usize, column: usize| (row * width + column) as u32;
                    pairs.push((square.sqrt(), place(row, column), place(there, beside)));
                }
            }
        }
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self { size: (height, width), pairs }
    }

    /// The number of the segment of each pixel, from 0 on.
    ///
    /// Two segments become one if the difference at their border is at most what they have inside, plus `scale` over their
    /// number of pixels; those of fewer than `least` pixels join a neighbor.
    pub(crate) fn segments(&self, scale: f64, least: usize) -> Array2<usize> {
        let (height, width) = self.size;
        let mut forest = Forest::new(height * width);
        let mut inside = vec![0.0; height * width];
        for &(difference, a, b) in &self.pairs {
            let (a, b) = (forest.root(a as usize), forest.root(b as usize));
            let limit = |segment: usize| inside[segment] + scale / forest.sizes[segment] as f64;
            if a != b && difference < limit(a).min(limit(b)) {
                let joined = forest.join(a, b);
                inside[joined] = difference;
            }
        }
        for &(_, a, b) in &self.pairs {
            let (a, b) = (forest.root(a as usize), forest.root(b as usize));
            if a != b && forest.sizes[a].min(forest.sizes[b]) < least {
                forest.join(a, b);
            }
        }
        let mut numbers = vec![usize::MAX; height * width];
        let mut count = 0;
        Array2::from_shape_fn((height, width), |(row, column)| {
            let root = forest.root(row * width + column);
            if numbers[root] == usize::MAX {
                numbers[root] = count;
                count += 1;
            }
            numbers[root]
        })
    }
}

/// Disjoint sets.
struct Forest {
    parents: Vec<usize>,
    sizes: Vec<usize>,
}

impl Forest {
    fn new(count: usize) -> Self {
        Self { parents: (0..count).collect(), sizes: vec![1; count] }
    }

    fn root(&mut self, mut element: usize) -> usize {
        while self.parents[element] != element {
            self.parents[element] = self.parents[self.parents[element]];
            element = self.parents[element];
        }
        element
    }

    /// Joins two roots; the root of both.
    fn join(&mut self, a: usize, b: usize) -> usize {
        let (root, other) = if self.sizes[a] >= self.sizes[b] { (a, b) } else { (b, a) };
        self.parents[other] = root;
        self.sizes[root] += self.sizes[other];
        root
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    #[test]
    fn uniform_regions_are_segments() {
        // Left and right half, and a square in the left one.
        let picture = Array3::from_shape_fn((20, 20, 3), |(row, column, channel)| match (row, column) {
            (5..9, 4..8) => 0.5,
            (_, 10..) => channel as f64,
            _ => 0.0,
        });
        let neighbors = Neighbors::new(picture.view());
        let segments = neighbors.segments(0.1, 1);
        let expected = Array2::from_shape_fn((20, 20), |(row, column)| match (row, column) {
            (5..9, 4..8) => 2,
            (_, 10..) => 1,
            _ => 0,
        });
        assert_eq!(segments, expected);
        // The square has 16 pixels.
        let merged = neighbors.segments(0.1, 17);
        assert_eq!(merged, expected.mapv(|segment| if segment == 2 { 0 } else { segment }));
        assert!(neighbors.segments(1e9, 1).iter().all(|&segment| segment == 0));
    }
}
