//! From files to what a model is run on: pictures prepared as the model takes them, arrays as they are.

use crate::files;
use crate::job::{Data, Pictures, is_array};
use crate::messages::{Messages, Usage};
use crate::npy;
use anyhow::{Context, Result, anyhow, bail};
use ndarray::{Array3, Axis};
use ouzel::image::{Channels, Geometry, Layout, Picture, Preprocess, Preset, Size, min_max};
use ouzel::rules::InputBounds;
use ouzel::{Dim, Input, Model, Tensor, ValueId};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The height and width of pictures where neither the model nor an option says one.
pub const SIDE: usize = 224;

/// An input that is ready.
pub struct Ready {
    /// What the model is run on.
    pub input: Input,
    /// The shape of what was read.
    pub shape: Vec<usize>,
    /// What a map can be laid over.
    pub backdrop: Backdrop,
    /// How a picture was prepared.
    pub preprocess: Option<Preprocess>,
}

/// What a map can be laid over.
pub enum Backdrop {
    /// A picture, and where the network's pixels are in it.
    Picture(Box<Picture>, Geometry),
    /// The samples of an array that look like pictures.
    Samples(Vec<Array3<u8>>),
    /// Nothing.
    None,
}

/// The model with the nodes that can be read only when the sizes of its input are known: those of the first of the data.
pub fn sized(model: Model, data: &Data) -> Result<Model> {
    if !model.awaits_sizes() || data.sources.iter().any(|source| files::is_stream(&source.path)) {
        return Ok(model);
    }
    let reader = Reader::new(&model, data, &Messages::new(true))?;
    let ready = match data.sources.first() {
        Some(source) => reader.read(&source.path)?,
        None => reader.named_only(),
    };
    let inputs = ready.input.resolve(&model)?;
    let shapes: Vec<_> = inputs.iter().map(|(id, tensor)| (*id, tensor.shape().to_vec())).collect();
    Ok(model.for_inputs(&shapes)?)
}

/// The model for pictures of this size.
pub fn with_size(model: &Model, layout: Layout, size: Size) -> Result<Model> {
    let input = model.main_input();
    let shape = &model.graph().fact(input).shape;
    if shape.len() != 4 {
        bail!(
            "--size: input {} takes {}, which has no height and width",
            model.graph().title(input),
            model.graph().fact(input)
        );
    }
    let first = if layout == Layout::Nchw { 2 } else { 1 };
    let mut lengths = vec![None; 4];
    (lengths[first], lengths[first + 1]) = (Some(size.height), Some(size.width));
    let known: Vec<Option<i64>> = shape.iter().map(Dim::known).collect();
    if known[first].is_some_and(|known| known != size.height as i64)
        || known[first + 1].is_some_and(|known| known != size.width as i64)
    {
        bail!(
            "--size: input {} takes {}, not {size}; leave the option out",
            model.graph().title(input),
            model.graph().fact(input)
        );
    }
    Ok(model.with_lengths(input, &lengths)?)
}

/// Reads inputs for one model.
pub struct Reader<'m> {
    model: &'m Model,
    pictures: &'m Pictures,
    preset: Preset,
    layout: Layout,
    named: Vec<(String, Tensor)>,
}

impl<'m> Reader<'m> {
    /// Reads the arrays that accompany every input.
    pub fn new(model: &'m Model, data: &'m Data, messages: &Messages) -> Result<Self> {
        let named = data.named.iter().map(|typed| named_array(model, typed)).collect::<Result<Vec<_>>>()?;
        let (preset, in_metadata) = presets(model, &data.pictures);
        let layout = data.pictures.layout.unwrap_or_else(|| model.input_layout(model.main_input()));
        let is_custom = data.pictures.mean.is_some() || data.pictures.std.is_some();
        let has_pictures = data.sources.iter().any(|source| source.path.extension() != Some("npy".as_ref()));
        if has_pictures && data.pictures.preset.is_none() && !is_custom {
            messages.note(match in_metadata {
                Some(preset) => format!("pictures are prepared as the model's metadata says: --preprocess {preset}"),
                None => "note: the network gets the pixels as 0..255 (--preprocess raw); if it was trained on other \
                         values, say so: unit is 0..1, imagenet is torchvision's; also caffe, tf"
                    .into(),
            });
        }
        Ok(Self { model, pictures: &data.pictures, preset, layout, named })
    }

    /// The arrays alone, for a model that is run on named inputs only.
    pub fn named_only(&self) -> Ready {
        let mut arrays = self.named.iter();
        let (name, tensor) = arrays.next().expect("invariant: checked that there are inputs");
        let main = self.model.graph().value(self.model.main_input()).name.clone();
        let shown = self.named.iter().find(|(name, _)| **name == *main).map_or(tensor, |(_, tensor)| tensor);
        let first = Input::named_tensor(name, tensor.clone());
        let input = arrays.fold(first, |input, (name, tensor)| input.and_tensor(name, tensor.clone()));
        Ready { input, shape: shown.shape().to_vec(), backdrop: self.samples(shown), preprocess: None }
    }

    /// Reads a picture or an array.
    pub fn read(&self, path: &Path) -> Result<Ready> {
        let (tensor, backdrop, preprocess) = self.prepared(path)?;
        if let (None, Some(option)) = (&preprocess, self.pictures.typed.first()) {
            let title = files::shown(path);
            let text = format!("{option} is for pictures, and {title} is an array: leave {option} out");
            return Err(Usage(text).into());
        }
        let main = self.model.graph().value(self.model.main_input()).name.to_string();
        let shape = tensor.shape().to_vec();
        let first = Input::named_tensor(&main, tensor);
        let input =
            self.named.iter().fold(first, |input, (name, tensor)| input.and_tensor(name, tensor.clone()));
        Ok(Ready { input, shape, backdrop, preprocess })
    }

    /// A picture as the model's main input takes it, or an array as it is.
    fn prepared(&self, path: &Path) -> Result<(Tensor, Backdrop, Option<Preprocess>)> {
        let bytes = files::read(path)?;
        let title = || files::shown(path);
        if npy::is_npy(&bytes) || path.extension().is_some_and(|it| it.eq_ignore_ascii_case("npy")) {
            let tensor =
                for_input(self.model, self.model.main_input(), npy::read(&bytes).with_context(title)?);
            let backdrop = self.samples(&tensor);
            return Ok((tensor, backdrop, None));
        }
        let picture = Picture::from_bytes(&bytes).with_context(title)?;
        let preprocess = self.preprocess(&picture).with_context(title)?;
        let prepared = preprocess.apply(&picture).with_context(title)?;
        let backdrop = Backdrop::Picture(Box::new(picture), prepared.geometry);
        Ok((prepared.tensor.into(), backdrop, Some(preprocess)))
    }

    /// Other inputs of the model, one behind the other: a picture or an array, or all files of a folder.
    pub fn others(&self, path: &Path) -> Result<Tensor> {
        if !path.is_dir() {
            return Ok(self.prepared(path)?.0);
        }
        let entries = path.read_dir().with_context(|| format!("cannot read {}", path.display()))?;
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in entries {
            files.push(entry.with_context(|| format!("cannot read {}", path.display()))?.path());
        }
        files.retain(|file| file.is_file());
        files.sort();
        let rank = self.model.graph().fact(self.model.main_input()).rank();
        let arrays = files.iter().map(|file| {
            let array = self.prepared(file)?.0.to_f32();
            Ok(if array.ndim() + 1 == rank { array.insert_axis(Axis(0)) } else { array })
        });
        let arrays = arrays.collect::<Result<Vec<_>>>()?;
        if arrays.is_empty() {
            bail!("the folder {} has no files", path.display());
        }
        let views: Vec<_> = arrays.iter().map(|array| array.view()).collect();
        let joined = ndarray::concatenate(Axis(0), &views);
        Ok(joined.with_context(|| format!("the inputs in {} are of different sizes", path.display()))?.into())
    }

    /// The lowest and highest values that the model's input can have, if only pictures are read.
    pub fn input_bounds(&self, data: &Data) -> Result<Option<InputBounds>> {
        if data.sources.is_empty() || data.sources.iter().any(|source| is_array(&source.path)) {
            return Ok(None);
        }
        let mut preprocess = self.pictures.preprocess().preset(self.preset).layout(self.layout);
        let shape = &self.model.graph().fact(self.model.main_input()).shape;
        let channels = if self.layout == Layout::Nchw { shape.get(1) } else { shape.last() };
        if channels.and_then(Dim::known) == Some(1) {
            preprocess.channels = Some(Channels::Grey);
        }
        let (low, high): (Vec<f64>, Vec<f64>) = preprocess
            .input_range()?
            .into_iter()
            .map(|(low, high)| (f64::from(low), f64::from(high)))
            .unzip();
        let are_equal = |values: &[f64]| values.iter().all(|value| *value == values[0]);
        Ok(Some(match are_equal(&low) && are_equal(&high) {
            true => InputBounds::new(low[0], high[0]),
            false => InputBounds { low, high },
        }))
    }

    /// How a picture is prepared for the model's main input.
    fn preprocess(&self, picture: &Picture) -> Result<Preprocess> {
        let own = Size::new(picture.height(), picture.width());
        preprocess(self.model, self.pictures, self.preset, self.layout, own)
    }

    /// The samples of an array as pictures, if they look like some.
    fn samples(&self, tensor: &Tensor) -> Backdrop {
        let values = tensor.to_f32();
        let values = if values.ndim() == 3 { values.insert_axis(Axis(0)) } else { values };
        let channel_axis = if self.layout == Layout::Nchw { 1 } else { 3 };
        if values.ndim() != 4 || !matches!(values.shape()[channel_axis], 1 | 3) {
            return Backdrop::None;
        }
        let sample = |sample: ndarray::ArrayViewD<'_, f32>| {
            let levels = min_max(sample).ok()?;
            let mut pixels = levels.into_dimensionality::<ndarray::Ix3>().ok()?;
            if self.layout == Layout::Nchw {
                pixels = pixels.permuted_axes([1, 2, 0]);
            }
            let (height, width, channels) = pixels.dim();
            Some(Array3::from_shape_fn((height, width, 3), |(row, column, channel)| {
                (pixels[[row, column, channel.min(channels - 1)]] * 255.0).round() as u8
            }))
        };
        match values.outer_iter().map(sample).collect::<Option<Vec<_>>>() {
            Some(samples) => Backdrop::Samples(samples),
            None => Backdrop::None,
        }
    }
}

/// The values that the model takes, as typed or as its metadata says.
fn presets(model: &Model, pictures: &Pictures) -> (Preset, Option<Preset>) {
    let in_metadata = model.metadata().get("preprocess").and_then(|name| Preset::from_str(name).ok());
    (pictures.preset.or(in_metadata).unwrap_or(Preset::Raw), in_metadata)
}

/// How pictures that are made for the model, of this size where nothing says another, become its input.
pub fn preprocess_of(model: &Model, pictures: &Pictures, own: Size) -> Result<Preprocess> {
    let layout = pictures.layout.unwrap_or_else(|| model.input_layout(model.main_input()));
    preprocess(model, pictures, presets(model, pictures).0, layout, own)
}

/// How pictures are prepared for a model's main input; `own` is the size where neither model nor options say one.
fn preprocess(
    model: &Model,
    pictures: &Pictures,
    preset: Preset,
    layout: Layout,
    own: Size,
) -> Result<Preprocess> {
    let graph = model.graph();
    let input = model.main_input();
    let shape = &graph.fact(input).shape;
    let described = || format!("input {} takes {}", graph.title(input), graph.fact(input));
    let [_, b, c, d] = &shape[..] else {
        bail!(
            "{}; a picture needs 4 axes (batch, channels, height and width): give a .npy array instead",
            described()
        );
    };
    let (channels, height, width) = match layout {
        Layout::Nchw => (b, c, d),
        Layout::Nhwc => (d, b, c),
    };
    let mut preprocess = pictures.preprocess().preset(preset).layout(layout);
    match channels.known() {
        Some(1) if pictures.channels.is_some() => {
            bail!("--channels: {}, which has one channel; leave the option out", described())
        }
        Some(1) => preprocess.channels = Some(Channels::Grey),
        Some(3) | None => {}
        Some(found) => {
            let other = if layout == Layout::Nchw { Layout::Nhwc } else { Layout::Nchw };
            bail!(
                "{}, which as {} has {found} channels; a picture has 1 or 3: try --layout {other}, or give a .npy \
                     array",
                described(),
                layout
            )
        }
    }
    let size = |dimension: &Dim, asked: Option<usize>, own: usize, side: &str| {
        let known = dimension.known().and_then(|length| usize::try_from(length).ok());
        match (known, asked) {
            (Some(known), Some(asked)) if known != asked => {
                bail!("--size: {}, whose {side} is {known}, not {asked}; leave the option out", described())
            }
            (Some(known), _) => Ok(known),
            (None, asked) => Ok(asked.unwrap_or(own)),
        }
    };
    let asked = pictures.size;
    preprocess.size = Some(Size::new(
        size(height, asked.map(|size| size.height), own.height, "height")?,
        size(width, asked.map(|size| size.width), own.width, "width")?,
    ));
    Ok(preprocess)
}

/// An array as an input takes it: whole numbers become floating point ones where those are wanted.
fn for_input(model: &Model, input: ValueId, tensor: Tensor) -> Tensor {
    let wanted = model.graph().fact(input).dtype;
    if tensor.dtype().is_integer() && wanted.is_float() { tensor.cast(wanted) } else { tensor }
}

/// `NAME=FILE`, split at the '=' that makes NAME an input of the model.
fn named_array(model: &Model, typed: &str) -> Result<(String, Tensor)> {
    let splits = typed.match_indices('=').map(|(place, _)| (&typed[..place], &typed[place + 1..]));
    let known: Vec<(&str, &str)> = splits.filter(|(name, _)| model.input(name).is_ok()).collect();
    let there = known.iter().find(|(_, file)| Path::new(file).exists());
    let Some((name, file)) = there.or(known.first()) else {
        let name = typed.split('=').next().unwrap_or_default();
        return Err(anyhow!(model.input(name).err().map_or_else(String::new, |error| error.to_string()))
            .context(format!("--input {typed}")));
    };
    let path = PathBuf::from(file);
    let context = || format!("--input {name}={}", path.display());
    let tensor = npy::read(&files::read(&path).with_context(context)?).with_context(context)?;
    let input = model.input(name)?;
    Ok(((*name).to_owned(), for_input(model, input, tensor)))
}
