//! Where the elements of a channels-last tensor lie in a buffer.

/// The geometry of a channels-last tensor inside a slice of floats.
///
/// The element (batch b, depth z, height y, width x, channel c) lies at
/// `(((b * size[0] + z) * size[1] + y) * size[2] + x) * pixel_stride + channel_offset + c`.
/// Tensors with fewer spatial axes set the first ones to 1. A stride greater than the number of channels makes views: the inputs of a
/// concatenation along channels can be written by their producers straight into the result.
///
/// ```
/// use ouzel_kernels::View;
/// let whole = View::packed(1, [1, 7, 7], 96);
/// let part = View::packed(1, [1, 7, 7], 32).within(96, 64); // channels 64..96 of `whole`
/// assert_eq!(part.index(0, [0, 0, 1], 3), 96 + 64 + 3);
/// assert_eq!(whole.len(), part.len());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Number of samples.
    pub batch: usize,
    /// Depth, height, width.
    pub size: [usize; 3],
    /// Number of channels of the tensor.
    pub channels: usize,
    /// Distance between the first channels of neighbouring pixels.
    pub pixel_stride: usize,
    /// Position of the first channel within a pixel.
    pub channel_offset: usize,
}

impl View {
    /// The view of a tensor that has its buffer for itself.
    pub fn packed(batch: usize, size: [usize; 3], channels: usize) -> View {
        View { batch, size, channels, pixel_stride: channels, channel_offset: 0 }
    }

    /// The same tensor as a range of channels, beginning at `channel_offset`, of a tensor with `pixel_stride` channels.
    pub fn within(self, pixel_stride: usize, channel_offset: usize) -> View {
        View { pixel_stride, channel_offset, ..self }
    }

    /// Number of pixels of all samples.
    ///
    /// # Panics
    /// If the number does not fit.
    pub fn pixels(&self) -> usize {
        self.size
            .iter()
            .try_fold(self.batch, |product, size| product.checked_mul(*size))
            .unwrap_or_else(|| panic!("the tensor {self:?} has too many pixels"))
    }

    /// How long a slice must be to hold the view: pixels times stride.
    ///
    /// # Panics
    /// If the number does not fit.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.pixels()
            .checked_mul(self.pixel_stride)
            .unwrap_or_else(|| panic!("the tensor {self:?} has too many elements"))
    }

    /// The position of an element in the slice.
    pub fn index(&self, batch: usize, position: [usize; 3], channel: usize) -> usize {
        (((batch * self.size[0] + position[0]) * self.size[1] + position[1]) * self.size[2] + position[2])
            * self.pixel_stride
            + self.channel_offset
            + channel
    }

    /// Asserts that the view lies within a slice of `len` elements and that its pixels do not overlap.
    ///
    /// What follows from it, and what the unsafe code relies on: no size exceeds `i32::MAX`, and for every pixel index below
    /// `pixels()` the range `pixel * pixel_stride + channel_offset ..` of `channels` elements lies within the slice and is disjoint
    /// from that of every other pixel.
    pub(crate) fn check(&self, len: usize, what: &str) {
        let limit = i32::MAX as usize;
        assert!(
            self.size.iter().all(|size| *size <= limit),
            "{what}: an axis of {self:?} is longer than {limit}"
        );
        let end = self.channel_offset.checked_add(self.channels);
        assert!(
            end.is_some_and(|end| end <= self.pixel_stride),
            "{what}: channels of {self:?} reach beyond the stride of a pixel"
        );
        assert!(self.len() <= len, "{what}: {self:?} needs {} elements, the slice has {len}", self.len());
    }
}
