//! What will be done: what was typed, checked and with its files read, as far as no model is needed for that.

use crate::args::{self, LabelsArgs, MethodArgs, OutputArgs, PictureArgs, RunArgs, TargetArgs};
use crate::files;
use crate::messages::{Usage, usage, wrong_option};
use crate::npy;
use anyhow::{Context, Result};
use ouzel::image::{Channels, Colormap, Fit, Labels, Layout, Preprocess, Preset, Size, View};
use ouzel::losses::{self, WeightedLoss};
use ouzel::{METHODS, MethodOption, OptionKind, OptionValue, Options, Precision, Region, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What is explained.
#[derive(Debug)]
pub enum Goal {
    /// Filters of a layer.
    Target {
        /// The layer as typed; `None` for the default.
        layer: Option<String>,
        /// Which of its filters; `None` for the default.
        filters: Option<FilterChoice>,
        /// Its channel axis.
        channel_axis: i64,
        /// Which of its positions.
        region: Region,
        /// Explain probabilities, not the logits before them.
        keep_softmax: bool,
    },
    /// Weighted losses, and the file that they come from.
    Losses(PathBuf, Vec<WeightedLoss>),
}

/// Filters as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterChoice {
    /// The highest-scoring ones, a map for each.
    Top(usize),
    /// The mean over the whole tensor.
    All,
    /// Indices or labels, to be told apart when the labels are known; one map.
    Listed(Vec<String>),
}

impl FilterChoice {
    fn new(typed: &[String]) -> Result<Option<Self>> {
        let word = match typed {
            [] => return Ok(None),
            [one] => one.trim(),
            _ => "",
        };
        Ok(Some(match (word, word.strip_prefix("top").map(str::parse)) {
            ("top", _) => Self::Top(1),
            ("all", _) => Self::All,
            (_, Some(Ok(0))) => usage!("--filters top0: expected top1 or more"),
            (_, Some(Ok(count))) => Self::Top(count),
            _ => {
                for part in typed.iter().flat_map(|text| text.split(',')) {
                    if let Ok(negative @ ..0) = part.trim().parse::<i64>() {
                        usage!("--filters {negative}: filters are counted from 0; expected 0 or more");
                    }
                    if part.trim().is_empty() {
                        usage!(
                            "--filters {:?}: expected an index, a label, top, topN or all, found nothing",
                            typed.join(" ")
                        );
                    }
                }
                Self::Listed(typed.to_vec())
            }
        }))
    }
}

/// How it is explained.
#[derive(Debug)]
pub struct Method {
    /// The method.
    pub method: Box<dyn ouzel::Method>,
    /// What was typed of it.
    pub typed: BTreeMap<&'static str, String>,
    /// The conventions that hold where they differ.
    pub profile: String,
}

impl Method {
    /// Reads the method's files; `input` reads those that are prepared as the model's input is.
    pub fn new(typed: &MethodArgs, run: &RunArgs, input: &dyn Fn(&Path) -> Result<Tensor>) -> Result<Self> {
        let entry = METHODS.iter().find(|method| method.name == typed.method);
        let entry = entry.expect("invariant: the choices come from the same list");
        let mut options = Options::new().with_profile(&typed.profile);
        let known = entry.options_with(typed.options.get("inner").map(String::as_str));
        for (name, text) in &typed.options {
            let Some(option) = known.iter().find(|option| option.name == *name) else {
                let has: Vec<String> = known.iter().map(|it| spelled(it.name)).collect();
                usage!("{}: the method {} has {}", spelled(name), entry.name, has.join(", "));
            };
            options = options.with_value(name, option_value(name, option.kind, text, input)?);
        }
        let mut method = ouzel::method(entry.name, &options)
            .map_err(|error| wrong_option(&format!("--method {}", entry.name), &error))?;
        let settings = method.settings_mut();
        // keras-vis knows no other convolution than the direct one.
        settings.precision = match run.precision {
            Precision::F32 if typed.profile == "keras-vis" => Precision::F32Direct,
            precision => precision,
        };
        settings.seed = run.seed;
        Ok(Self { method, typed: typed.options.clone(), profile: typed.profile.clone() })
    }

    /// All options that it has.
    pub fn options(&self) -> Vec<&'static MethodOption> {
        self.method.entry().options_with(self.typed.get("inner").map(String::as_str))
    }

    /// The name of the tensor that the map is made for, as typed.
    pub fn wrt(&self) -> Option<&str> {
        self.typed.get("wrt").map(String::as_str)
    }
}

/// The array in a `.npy` file.
pub fn array(path: &Path) -> Result<Tensor> {
    npy::read(&files::read(path)?).with_context(|| files::shown(path))
}

/// A method's option as it is typed.
fn spelled(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// What was typed as a method's option, its file read.
fn option_value(
    name: &str,
    kind: OptionKind,
    text: &str,
    input: &dyn Fn(&Path) -> Result<Tensor>,
) -> Result<OptionValue> {
    let of = || spelled(name);
    Ok(match kind {
        OptionKind::Toml if args::is_toml(text) => {
            OptionValue::Toml(text.to_owned(), files::read_text(Path::new(text)).with_context(of)?)
        }
        // What is no file is a name or number.
        OptionKind::Input if Path::new(text).exists() => {
            OptionValue::Array(text.to_owned(), input(Path::new(text)).with_context(of)?)
        }
        OptionKind::Array => OptionValue::Array(text.to_owned(), array(Path::new(text)).with_context(of)?),
        _ => OptionValue::Text(text.to_owned()),
    })
}

/// The region as typed: its name, its ranges, or the file of a mask.
fn region(text: &str) -> Result<Region> {
    let path = Path::new(text);
    if files::is_stream(path) || text.to_ascii_lowercase().ends_with(".npy") {
        let bytes = files::read(path).context("--region")?;
        return Ok(Region::Mask(npy::read(&bytes).with_context(|| format!("--region {text}"))?));
    }
    Region::from_str(text).map_err(|error| wrong_option("--region", &error))
}

impl Goal {
    /// Reads the losses' file.
    pub fn new(typed: &TargetArgs) -> Result<Self> {
        Ok(match &typed.losses {
            None => Self::Target {
                layer: typed.layer.clone(),
                filters: FilterChoice::new(&typed.filters)?,
                channel_axis: typed.channel_axis,
                region: typed.region.as_deref().map_or(Ok(Region::All), region)?,
                keep_softmax: typed.keep_softmax,
            },
            Some(path) => {
                let text = files::read_text(path).context("--losses")?;
                let losses = losses::from_toml(&text)
                    .map_err(|error| wrong_option(&format!("--losses {}", path.display()), &error))?;
                Self::Losses(path.clone(), losses)
            }
        })
    }

    /// True if several maps come out.
    pub fn map_count(&self) -> usize {
        match self {
            Self::Target { filters: Some(FilterChoice::Top(count)), .. } => *count,
            _ => 1,
        }
    }
}

/// How pictures become the network's input, as far as it was said.
#[derive(Debug)]
pub struct Pictures {
    /// Scale and offset of the values.
    pub preset: Option<Preset>,
    /// Replaces the preset's mean.
    pub mean: Option<Vec<f32>>,
    /// Replaces the preset's std.
    pub std: Option<Vec<f32>>,
    /// Height and width.
    pub size: Option<Size>,
    /// What happens to other proportions.
    pub fit: Option<Fit>,
    /// The order of colors.
    pub channels: Option<Channels>,
    /// The order of axes.
    pub layout: Option<Layout>,
    /// The options that were typed and mean nothing for arrays.
    pub typed: Vec<&'static str>,
}

impl Pictures {
    /// Checks what can be checked without a picture.
    pub fn new(typed: &PictureArgs) -> Result<Self> {
        let given = |values: &[f32]| (!values.is_empty()).then(|| values.to_vec());
        let (mean, std) = (given(&typed.mean), given(&typed.std));
        for (name, values) in [("--mean", &mean), ("--std", &std)] {
            if let Some(values) = values {
                let is_wrong = |value: &&f32| !value.is_finite() || (name == "--std" && **value == 0.0);
                if let Some(value) = values.iter().find(is_wrong) {
                    usage!(
                        "{name} {value}: expected finite numbers{}",
                        if name == "--std" { ", not 0" } else { "" }
                    );
                }
                if !matches!(values.len(), 1 | 3) {
                    usage!("{name}: expected 1 or 3 numbers, found {}", values.len());
                }
            }
        }
        let options = [
            ("--preprocess", typed.preprocess.is_some()),
            ("--mean", mean.is_some()),
            ("--std", std.is_some()),
            ("--size", typed.size.is_some()),
            ("--fit", typed.fit.is_some()),
            ("--channels", typed.channels.is_some()),
        ];
        Ok(Self {
            preset: typed.preprocess,
            mean,
            std,
            size: typed.size,
            fit: typed.fit,
            channels: typed.channels,
            layout: typed.layout,
            typed: options.into_iter().filter(|(_, is_typed)| *is_typed).map(|(name, _)| name).collect(),
        })
    }

    /// What the options make of pictures, before the model has its say.
    pub fn preprocess(&self) -> Preprocess {
        let mut preprocess = Preprocess::default();
        preprocess.preset = self.preset.unwrap_or(preprocess.preset);
        preprocess.mean.clone_from(&self.mean);
        preprocess.std.clone_from(&self.std);
        preprocess.fit = self.fit.unwrap_or(preprocess.fit);
        preprocess.channels = self.channels;
        preprocess.layout = self.layout.unwrap_or(preprocess.layout);
        preprocess
    }
}

/// An input as it was named on the command line.
#[derive(Debug)]
pub struct Source {
    /// The file, or '-'.
    pub path: PathBuf,
    /// What results are called after it.
    pub stem: String,
}

/// Everything that is read.
#[derive(Debug)]
pub struct Data {
    /// The model's file, or '-'.
    pub model: PathBuf,
    /// What the maps are made for, one after the other.
    pub sources: Vec<Source>,
    /// `NAME=FILE` for other inputs of the model.
    pub named: Vec<String>,
    /// How pictures are prepared.
    pub pictures: Pictures,
    /// What classes are called.
    pub labels: Option<Labels>,
}

impl Data {
    /// Checks the inputs as far as the model does not matter.
    pub fn new(typed: &args::DataArgs, pictures: &PictureArgs, labels: &LabelsArgs) -> Result<Self> {
        let pictures = Pictures::new(pictures)?;
        if typed.inputs.is_empty() && typed.named.is_empty() {
            usage!("there is nothing to run the model on: name a picture or a .npy array behind the model");
        }
        let all = typed.inputs.iter().map(PathBuf::as_path).chain([typed.model.as_path()]);
        files::check_streams("of the inputs", all)?;
        for named in &typed.named {
            if !named.contains('=') {
                usage!("--input {named}: expected NAME=FILE.npy");
            }
        }
        let array = typed.inputs.iter().find(|path| is_array(path)).map(|path| path.display().to_string());
        let only_arrays = typed.inputs.is_empty().then(|| typed.named.join(" "));
        if let (Some(option), Some(array)) = (pictures.typed.first(), array.or(only_arrays)) {
            usage!(
                "{option} is for pictures, and {array} is an array, which is used as it is: leave {option} out"
            );
        }
        let mut names = files::Names::default();
        let sources = typed.inputs.iter().map(|path| {
            let stem = names.distinct(&files::stem(path));
            Source { path: path.clone(), stem }
        });
        Ok(Self {
            model: typed.model.clone(),
            sources: sources.collect(),
            named: typed.named.clone(),
            pictures,
            labels: read_labels(labels)?,
        })
    }
}

/// Reads the labels.
pub fn read_labels(typed: &LabelsArgs) -> Result<Option<Labels>> {
    Ok(match &typed.labels {
        None => None,
        Some(path) if files::is_stream(path) => {
            Some(Labels::parse(&files::read_text(path)?).context("--labels, standard input")?)
        }
        Some(path) => Some(Labels::named_or_open(&path.to_string_lossy()).context("--labels")?),
    })
}

/// True for files that hold, or should hold, a .npy array.
pub fn is_array(path: &Path) -> bool {
    use std::io::Read;
    let mut start = [0; 6];
    let has_magic = !files::is_stream(path)
        && path.is_file()
        && std::fs::File::open(path)
            .and_then(|mut file| file.read_exact(&mut start))
            .is_ok_and(|()| npy::is_npy(&start));
    has_magic || path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npy"))
}

/// Everything that is written.
#[derive(Debug)]
pub struct Output {
    /// The picture's file, if it was named.
    pub out: Option<PathBuf>,
    /// The folder for pictures, if it was named.
    pub out_dir: Option<PathBuf>,
    /// True if a picture is drawn.
    pub has_picture: bool,
    /// What the picture shows.
    pub view: Option<View>,
    /// Its colors.
    pub colormap: Option<Colormap>,
    /// Its opacity.
    pub alpha: Option<f32>,
    /// Replace what exists.
    pub force: bool,
    /// The map's file.
    pub npy: Option<PathBuf>,
    /// The raw attribution's file.
    pub raw_npy: Option<PathBuf>,
    /// The report's file.
    pub json: Option<PathBuf>,
}

impl Output {
    /// Checks that what is written has a place, and one of its own.
    pub fn new(typed: &OutputArgs, sources: &[Source], maps: usize) -> Result<Self> {
        let files = [
            ("--out", &typed.out),
            ("--npy", &typed.npy),
            ("--raw-npy", &typed.raw_npy),
            ("--json", &typed.json),
        ];
        let named = || files.iter().filter_map(|(name, path)| path.as_deref().map(|path| (*name, path)));
        for (option, path) in named() {
            if sources.len() > 1 && !(option == "--json" && files::is_stream(path)) {
                usage!(
                    "{option} {} is one file, and there are {} inputs: use --out-dir, or one input",
                    path.display(),
                    sources.len()
                );
            }
            if maps > 1 && files::is_stream(path) && option != "--json" {
                usage!("{option} - cannot hold {maps} maps: name a file");
            }
        }
        files::check_streams("of the outputs", named().map(|(_, path)| path))?;
        let mut seen: Vec<&Path> = Vec::new();
        for (option, path) in named() {
            if !files::is_stream(path) && seen.contains(&path) {
                usage!("{option} {}: another output has the same file", path.display());
            }
            seen.push(path);
            files::check_parent(option, path)?;
        }
        Ok(Self {
            has_picture: typed.out.is_some() || typed.out_dir.is_some() || named().next().is_none(),
            out: typed.out.clone(),
            out_dir: typed.out_dir.clone(),
            view: typed.look.view,
            colormap: typed.look.colormap.clone(),
            alpha: typed.look.alpha,
            force: typed.force,
            npy: typed.npy.clone(),
            raw_npy: typed.raw_npy.clone(),
            json: typed.json.clone(),
        })
    }

    /// The picture's file for an input.
    pub fn picture(&self, stem: &str) -> Option<PathBuf> {
        if !self.has_picture {
            return None;
        }
        let name = format!("{stem}.ouzel.png");
        Some(match (&self.out, &self.out_dir) {
            (Some(file), _) => file.clone(),
            (None, Some(folder)) => folder.join(name),
            (None, None) => PathBuf::from(name),
        })
    }

    /// True if the user did not spell the picture's name, so that an older file must not be replaced unasked.
    pub fn is_careful(&self) -> bool {
        self.out.is_none() && !self.force
    }
}

/// How it runs.
#[derive(Debug)]
pub struct Run {
    /// The seed of whatever is random.
    pub seed: u64,
    /// Say how long each phase and each step took.
    pub timings: bool,
    /// Say which rule each node got.
    pub explain_rules: bool,
}

impl Run {
    /// Sets the number of threads.
    pub fn new(typed: &RunArgs) -> Result<Self> {
        set_threads(typed.threads)?;
        Ok(Self { seed: typed.seed, timings: typed.timings, explain_rules: typed.explain_rules })
    }
}

/// Sets the number of threads of everything that follows.
pub fn set_threads(count: Option<u16>) -> Result<()> {
    let count = count.map_or(0, usize::from);
    let built = rayon::ThreadPoolBuilder::new().num_threads(count).build_global();
    Ok(built.map_err(|error| Usage(format!("--threads {count}: {error}")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_as_typed() {
        let choice = |typed: &[&str]| {
            FilterChoice::new(&typed.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(choice(&[]).unwrap(), None);
        assert_eq!(choice(&["top"]).unwrap(), Some(FilterChoice::Top(1)));
        assert_eq!(choice(&["top12"]).unwrap(), Some(FilterChoice::Top(12)));
        assert_eq!(choice(&["all"]).unwrap(), Some(FilterChoice::All));
        assert_eq!(choice(&["topknot"]).unwrap(), Some(FilterChoice::Listed(vec!["topknot".into()])));
        for wrong in [&["-1"][..], &["1,-2"], &["top0"], &["1,,2"], &[""]] {
            assert!(choice(wrong).unwrap_err().is::<Usage>(), "{wrong:?}");
        }
    }
}
