//! How a network probably wants its pictures: what its file, its shapes and its first layers say, and how sure that is.

use crate::dim::Dim;
use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::image::{Channels, Layout, Preset, Size};
use crate::model::Model;
use crate::op::Op;
use crate::tensor::DType;
use std::fmt;
use std::str::FromStr;

/// How sure a suggestion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sureness {
    /// Nothing speaks for it but habit.
    Guess,
    /// Something in the file speaks for it.
    Likely,
    /// The file says so.
    Certain,
}

impl fmt::Display for Sureness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guess => "a guess",
            Self::Likely => "likely",
            Self::Certain => "certain",
        })
    }
}

/// Something that is suggested, how sure it is, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggestion<T> {
    /// What is suggested.
    pub value: T,
    /// How sure it is.
    pub sureness: Sureness,
    /// Why.
    pub reason: String,
}

impl<T> Suggestion<T> {
    fn new(value: T, sureness: Sureness, reason: impl Into<String>) -> Self {
        Self { value, sureness, reason: reason.into() }
    }
}

/// How pictures are probably prepared for a network.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Preparation {
    /// The input that takes the picture.
    pub input: ValueId,
    /// The order of its axes.
    pub layout: Suggestion<Layout>,
    /// Height and width.
    pub size: Suggestion<Size>,
    /// True if the network takes other sizes too.
    pub any_size: bool,
    /// The order of colors.
    pub channels: Suggestion<Channels>,
    /// The range of the values.
    pub preset: Suggestion<Preset>,
}

impl Preparation {
    /// The options of the command line that say so, those left out that are the default.
    pub fn options(&self, model: &Model) -> Vec<String> {
        let mut options = Vec::new();
        // Presets that put blue first say so themselves.
        let own = if self.preset.value == Preset::Caffe { Channels::Bgr } else { Channels::Rgb };
        options.extend([format!("--preprocess {}", self.preset.value)]);
        if self.any_size {
            options.push(format!("--size {}", self.size.value));
        }
        if self.channels.value != Channels::Grey && self.channels.value != own {
            options.push(format!("--channels {}", self.channels.value));
        }
        if self.layout.value != model.input_layout(self.input) {
            options.push(format!("--layout {}", self.layout.value));
        }
        options
    }
}

/// Side lengths of pictures where a network takes any.
const USUAL_SIZE: usize = 224;

impl Model {
    /// How pictures are probably prepared for the model's main input.
    ///
    /// ```
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
    /// use ouzel::image::Layout;
    /// let model = ouzel::Model::load(path)?;
    /// let preparation = model.preparation()?;
    /// assert_eq!(preparation.layout.value, Layout::Nchw);
    /// println!("{}: {}", preparation.preset.value, preparation.preset.reason);
    /// # Ok::<(), ouzel::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the input is no picture; the message says what it is.
    pub fn preparation(&self) -> crate::Result<Preparation> {
        let graph = self.graph();
        let input = self.main_input();
        let fact = graph.fact(input);
        let [_, b, c, d] = &fact.shape[..] else {
            let kind = match fact.rank() {
                3 => "signals or tokens",
                5 => "volumes",
                _ => "features",
            };
            return Err(crate::Error::input(format!(
                "input {} takes {kind} ({fact}), not pictures: give a .npy array",
                graph.title(input)
            )));
        };
        let layout = self.layout(input, b, d);
        let (channel, height, width) = match layout.value {
            Layout::Nchw => (b, c, d),
            Layout::Nhwc => (d, b, c),
        };
        if !matches!(channel.known(), None | Some(1 | 3)) {
            return Err(crate::Error::input(format!(
                "input {} takes {fact}, which has {channel} channels; a picture has 1 or 3: give a .npy array",
                graph.title(input)
            )));
        }
        let (size, any_size) = self.picture_size(height, width);
        let entry = Entry::new(graph, input, layout.value);
        let channels = self.channel_order(channel, &entry);
        let preset = self.preset(channel, layout.value, &entry);
        let channels = match (preset.value, channels.sureness) {
            (Preset::Caffe, Sureness::Guess) => {
                Suggestion::new(Channels::Bgr, preset.sureness, "part of the preset 'caffe'")
            }
            _ => channels,
        };
        Ok(Preparation { input, layout, size, any_size, channels, preset })
    }

    fn layout(&self, input: ValueId, second: &Dim, last: &Dim) -> Suggestion<Layout> {
        let graph = self.graph();
        let shape = crate::dim::display_shape(&graph.fact(input).shape);
        let consumers = graph.nodes().iter().filter(|node| node.inputs.contains(&Some(input)));
        let turned = consumers.into_iter().any(|node| match &node.op {
            Op::Transpose(op) => op.permutation.as_deref() == Some(&[0, 3, 1, 2]),
            _ => false,
        });
        let few = |dim: &Dim| matches!(dim.known(), Some(1 | 3));
        match (few(second), few(last)) {
            (true, false) => {
                Suggestion::new(Layout::Nchw, Sureness::Certain, format!("axis 1 of {shape} is {second}"))
            }
            (false, true) => Suggestion::new(
                Layout::Nhwc,
                Sureness::Certain,
                format!("the last axis of {shape} is {last}"),
            ),
            _ if turned => Suggestion::new(
                Layout::Nhwc,
                Sureness::Likely,
                "the network moves the last axis to the front first",
            ),
            _ => {
                let layout = self.input_layout(input);
                Suggestion::new(layout, Sureness::Guess, format!("{shape} fits both orders"))
            }
        }
    }

    fn picture_size(&self, height: &Dim, width: &Dim) -> (Suggestion<Size>, bool) {
        let known = |dim: &Dim| dim.known().and_then(|length| usize::try_from(length).ok());
        if let (Some(height), Some(width)) = (known(height), known(width)) {
            let size = Size::new(height, width);
            return (Suggestion::new(size, Sureness::Certain, "the input's shape"), false);
        }
        let stated = ["imgsz", "input_size", "image_size"].iter().find_map(|key| {
            let numbers = self.metadata().get(*key)?.split(|character: char| !character.is_ascii_digit());
            let numbers: Vec<usize> = numbers.filter_map(|number| number.parse().ok()).collect();
            match numbers[..] {
                [side] => Some((key, Size::new(side, side))),
                [height, width] | [1 | 3, height, width] => Some((key, Size::new(height, width))),
                _ => None,
            }
        });
        let size = match stated {
            Some((key, size)) => {
                Suggestion::new(size, Sureness::Certain, format!("the file's metadata ('{key}')"))
            }
            None => {
                let side = |dim: &Dim| known(dim).unwrap_or(USUAL_SIZE);
                let size = Size::new(side(height), side(width));
                Suggestion::new(
                    size,
                    Sureness::Guess,
                    "the network takes any size, and most are trained on this one",
                )
            }
        };
        (size, true)
    }

    fn channel_order(&self, channel: &Dim, entry: &Entry) -> Suggestion<Channels> {
        if channel.is(1) {
            return Suggestion::new(Channels::Grey, Sureness::Certain, "the input has one channel");
        }
        match self.metadata().get("Image.BitmapPixelFormat").map(String::as_str) {
            Some(format) if format.starts_with("Bgr") => {
                return Suggestion::new(
                    Channels::Bgr,
                    Sureness::Certain,
                    format!("the file's metadata ('{format}')"),
                );
            }
            Some(format) if format.starts_with("Rgb") => {
                return Suggestion::new(
                    Channels::Rgb,
                    Sureness::Certain,
                    format!("the file's metadata ('{format}')"),
                );
            }
            _ => {}
        }
        match entry.turns_colors {
            true => Suggestion::new(
                Channels::Rgb,
                Sureness::Likely,
                "the network turns the colors around itself, as those do that were trained on BGR",
            ),
            false => Suggestion::new(Channels::Rgb, Sureness::Guess, "nothing speaks for another order"),
        }
    }

    fn preset(&self, channel: &Dim, layout: Layout, entry: &Entry) -> Suggestion<Preset> {
        let metadata = self.metadata();
        if let Some(preset) = metadata.get("preprocess").and_then(|name| Preset::from_str(name).ok()) {
            return Suggestion::new(preset, Sureness::Certain, "the file's metadata ('preprocess')");
        }
        let stated = metadata.get("Image.NominalPixelRange").map(String::as_str);
        let stated = stated.and_then(|range| match range {
            "NominalRange_0_255" => Some((Preset::Raw, range)),
            "Normalized_0_1" => Some((Preset::Unit, range)),
            "Normalized_1_1" => Some((Preset::Tf, range)),
            _ => None,
        });
        if let Some((preset, range)) = stated {
            return Suggestion::new(preset, Sureness::Certain, format!("the file's metadata ('{range}')"));
        }
        if self.graph().fact(self.main_input()).dtype == DType::U8 {
            return Suggestion::new(Preset::Raw, Sureness::Certain, "the input takes bytes");
        }
        if let Some(found) = entry.range() {
            return found;
        }
        if metadata.contains_key("stride") && metadata.contains_key("names") {
            return Suggestion::new(Preset::Unit, Sureness::Likely, "the metadata is that of a YOLO network");
        }
        let graph = self.graph();
        let names = || {
            let nodes = graph.nodes().iter().map(|node| &*node.name);
            nodes.chain(graph.values().map(|(_, value)| &*value.name))
        };
        for (part, preset, family) in FAMILIES {
            if layout == Layout::Nhwc && names().any(|name| name.to_ascii_lowercase().contains(part)) {
                let reason = format!("names such as '{part}' are those of Keras's {family}");
                return Suggestion::new(*preset, Sureness::Likely, reason);
            }
        }
        match (channel.is(1), layout) {
            (true, _) => {
                Suggestion::new(Preset::Unit, Sureness::Guess, "most networks for grey pictures take 0..1")
            }
            (false, Layout::Nchw) => Suggestion::new(
                Preset::Imagenet,
                Sureness::Guess,
                "the network does not normalize, and most networks with channels first are trained on ImageNet's mean \
                 and standard deviation",
            ),
            (false, Layout::Nhwc) => Suggestion::new(
                Preset::Unit,
                Sureness::Guess,
                "the network does not normalize; with channels last 0..1 is frequent, and so is -1..1 (tf)",
            ),
        }
    }
}

/// Parts of names in Keras's own networks, and what these take. The first that fits counts.
const FAMILIES: &[(&str, Preset, &str)] = &[
    ("mobilenet", Preset::Tf, "MobileNet"),
    ("conv_dw_1", Preset::Tf, "MobileNet"),
    ("expanded_conv_", Preset::Tf, "MobileNet"),
    ("inception", Preset::Tf, "Inception"),
    ("xception", Preset::Tf, "Xception"),
    ("sepconv1", Preset::Tf, "Xception"),
    ("nasnet", Preset::Tf, "NASNet"),
    ("resnet50v2", Preset::Tf, "ResNetV2"),
    ("resnet101v2", Preset::Tf, "ResNetV2"),
    ("resnet152v2", Preset::Tf, "ResNetV2"),
    ("densenet", Preset::Imagenet, "DenseNet"),
    ("efficientnet", Preset::Raw, "EfficientNet, which normalizes itself"),
    ("convnext", Preset::Raw, "ConvNeXt, which normalizes itself"),
    ("resnet", Preset::Caffe, "ResNet"),
    ("vgg", Preset::Caffe, "VGG"),
    ("block5_conv3", Preset::Caffe, "VGG"),
    ("conv5_block3_out", Preset::Caffe, "ResNet"),
];

/// What a network does to its input before the first layer with weights.
#[derive(Debug, Default)]
struct Entry {
    /// For each channel, or for all at once, what an input is multiplied by and what is added then.
    scale: Vec<f64>,
    offset: Vec<f64>,
    /// Mean and standard deviation that a batch normalization on the input expects.
    expects: Option<(f64, f64)>,
    turns_colors: bool,
}

impl Entry {
    /// Follows the input through nodes that each are the only one to read it.
    fn new(graph: &Graph, input: ValueId, layout: Layout) -> Self {
        let mut entry = Self { scale: vec![1.0], offset: vec![0.0], ..Self::default() };
        let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); graph.values().len()];
        // Asking for a shape is not reading.
        for (id, node) in graph.nodes_with_ids().filter(|(_, node)| !matches!(node.op, Op::Shape(_))) {
            node.inputs.iter().flatten().for_each(|input| readers[input.index()].push(id));
        }
        let mut value = input;
        while let [reader] = readers[value.index()][..] {
            let node = graph.node(reader);
            if !entry.follow(graph, node, value, layout) {
                break;
            }
            match node.outputs.first() {
                Some(&output) => value = output,
                None => break,
            }
        }
        entry
    }

    /// Takes one node into account; false if it is not one that prepares pictures.
    fn follow(&mut self, graph: &Graph, node: &Node, value: ValueId, layout: Layout) -> bool {
        let numbers = |position: usize| -> Option<Vec<f64>> {
            let constant = node.inputs.get(position).copied().flatten()?;
            let values = graph.fact(constant).floats()?;
            matches!(values.len(), 1 | 3).then_some(values)
        };
        let is_first = node.inputs.first() == Some(&Some(value));
        let other = usize::from(is_first);
        match (&node.op, is_first) {
            (
                Op::Identity(_)
                | Op::Cast(_)
                | Op::Transpose(_)
                | Op::Pad(_)
                | Op::Resize(_)
                | Op::RoundTo(_),
                true,
            ) => true,
            (Op::Add(_), _) => numbers(other).map(|by| self.apply(&[1.0], &by)).is_some(),
            (Op::Sub(_), true) => numbers(1).map(|by| self.apply(&[1.0], &negated(&by))).is_some(),
            (Op::Sub(_), false) => numbers(0).map(|by| self.apply(&[-1.0], &by)).is_some(),
            (Op::Mul(_), _) => numbers(other).map(|by| self.apply(&by, &[0.0])).is_some(),
            (Op::Div(_), true) => {
                let by = numbers(1).map(|by| by.iter().map(|value| value.recip()).collect::<Vec<f64>>());
                by.map(|by| self.apply(&by, &[0.0])).is_some()
            }
            (Op::BatchNormalization(_), true) => {
                let (mean, variance) = (numbers(3), numbers(4));
                if let (Some(mean), Some(variance)) = (mean, variance) {
                    let average = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
                    self.expects = Some((average(&mean), average(&variance).max(0.0).sqrt()));
                }
                false
            }
            (Op::Slice(_), true) => {
                let of = |position: usize| {
                    graph.fact(node.inputs.get(position).copied().flatten()?).known_integers()
                };
                let channel = if layout == Layout::Nchw { [1, -3] } else { [3, -1] };
                let turns = of(4).is_some_and(|steps| steps == [-1])
                    && of(3).is_some_and(|axes| matches!(axes[..], [axis] if channel.contains(&axis)));
                self.turns_colors |= turns;
                turns
            }
            (Op::Gather(op), true) => {
                let rank = graph.fact(value).rank() as i64;
                let axis = if op.axis < 0 { op.axis + rank } else { op.axis };
                let order =
                    node.inputs.get(1).copied().flatten().and_then(|id| graph.fact(id).known_integers());
                let turns = axis == if layout == Layout::Nchw { 1 } else { 3 }
                    && order.is_some_and(|order| order == [2, 1, 0]);
                self.turns_colors |= turns;
                turns
            }
            _ => false,
        }
    }

    /// What was so far is scaled and moved.
    fn apply(&mut self, scale: &[f64], offset: &[f64]) {
        let count = [self.scale.len(), scale.len(), offset.len()].into_iter().max().unwrap_or(1);
        let of = |values: &[f64], channel: usize| values[if values.len() == 1 { 0 } else { channel }];
        let scaled: Vec<f64> =
            (0..count).map(|channel| of(&self.scale, channel) * of(scale, channel)).collect();
        let moved = |channel| of(&self.offset, channel) * of(scale, channel) + of(offset, channel);
        self.offset = (0..count).map(moved).collect();
        self.scale = scaled;
    }

    /// The range of values that the network makes about one of.
    fn range(&self) -> Option<Suggestion<Preset>> {
        let average = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (scale, offset) = (average(&self.scale), average(&self.offset));
        let (mean, spread, what) = match self.expects {
            _ if !(scale.is_finite() && offset.is_finite()) || scale == 0.0 => return None,
            Some((mean, deviation)) => (
                (mean - offset) / scale,
                deviation / scale.abs(),
                "a batch normalization on the input expects",
            ),
            None if self.scale == [1.0] && self.offset == [0.0] => return None,
            None => (-offset / scale, 1.0 / scale.abs(), "the network itself normalizes to"),
        };
        let numbers = format!("{what} a mean of {mean:.3} and a deviation of {spread:.3}");
        let sureness = if self.expects.is_some() { Sureness::Likely } else { Sureness::Certain };
        Some(match () {
            () if mean.abs().max(spread) > 3.0 => {
                Suggestion::new(Preset::Raw, sureness, format!("{numbers}, so it takes 0..255"))
            }
            () if mean > 0.05 => {
                Suggestion::new(Preset::Unit, sureness, format!("{numbers}, so it takes 0..1"))
            }
            () if spread > 0.6 && self.expects.is_some() => Suggestion::new(
                Preset::Imagenet,
                Sureness::Guess,
                format!("{numbers}, so it takes normalized pictures"),
            ),
            () => return None,
        })
    }
}

fn negated(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| -value).collect()
}
