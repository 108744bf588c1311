//! What was typed: verbs, options, help texts. Choices come from the library's lists.

use clap::builder::{NonEmptyStringValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueHint};
use ouzel::image::{Channels, Colormap, Fit, Layout, Preset, Size, View};
use ouzel::{METHODS, MethodOption, OptionKind, PROFILES, Precision};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::str::FromStr;

/// See what a neural network looks at: saliency maps for any ONNX model.
#[derive(Debug, Parser)]
#[command(
    name = "ouzel",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  ouzel demo                              what the tool is for
  ouzel inspect net.onnx                  layers, outputs, what can be explained
  ouzel predict net.onnx cat.jpg --preprocess imagenet --labels imagenet
  ouzel explain net.onnx cat.jpg --preprocess imagenet --labels imagenet

'-' stands for standard input or output wherever a file is named. Results go to standard output, messages to standard \
error. Exit codes: 0 done; 1 understood, but it cannot be done for this model or input; 2 wrong command."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Draw which parts of an input change the network's answer
    Explain(Box<ExplainArgs>),
    /// Save the explanation as an ONNX file that any runtime executes
    Export(Box<ExportArgs>),
    /// List a model's inputs, outputs and layers, what can be explained and what is not supported
    Inspect(InspectArgs),
    /// Run a model forward: the top classes, or every output as a .npy file
    Predict(Box<PredictArgs>),
    /// Explain one input by several methods and draw the maps side by side
    Compare(Box<CompareArgs>),
    /// Draw what filters or classes respond to, made from the network alone
    Visualize(Box<VisualizeArgs>),
    /// List the explanation methods: options, cost, papers, known criticism
    Methods(MethodsArgs),
    /// Show on networks and pictures inside the program what saliency maps are for
    Demo(DemoArgs),
    /// Measure how long an explanation or a prediction takes on this machine
    Bench(Box<BenchArgs>),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  ouzel completions bash > ~/.local/share/bash-completion/completions/ouzel"
    )]
    Completions(CompletionsArgs),
    /// Print the manual page, or write one for each verb
    Man(ManArgs),
}

/// Options of `explain`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  the top class        ouzel explain net.onnx cat.jpg --preprocess imagenet
  a class by label     ouzel explain net.onnx cat.jpg --class tabby --labels imagenet
  three maps           ouzel explain net.onnx cat.jpg --class top3 --out-dir maps
  many pictures        ouzel explain net.onnx *.jpg --out-dir maps
  a convolution        ouzel explain net.onnx cat.jpg --layer conv3 --filters 7
  a regression         ouzel explain net.onnx road.png --grad-modifier none
                       (red raises the output, blue lowers it)
  arrays and numbers   ouzel explain net.onnx x.npy --raw-npy gradient.npy --json -

With no output option, the picture INPUT-NAME.ouzel.png is written to the current folder; never over an existing file \
without --force.

In pictures of signed maps, a pixel shows the channel of largest magnitude; arrays have the maximum over the channels.")]
pub struct ExplainArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub pictures: PictureArgs,
    #[command(flatten)]
    pub labels: LabelsArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// The model, and what it is run on.
#[derive(Args, Debug)]
pub struct DataArgs {
    /// The network, an ONNX file; '-' for standard input
    #[arg(value_name = "MODEL", value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// Pictures (PNG, JPEG, WebP, BMP, TIFF, GIF), or .npy arrays as the model takes them, with or without the batch
    /// axis; '-' for standard input
    #[arg(value_name = "INPUT", value_hint = ValueHint::FilePath)]
    pub inputs: Vec<PathBuf>,
    /// An array for one of several inputs of the model; may be repeated
    #[arg(long = "input", value_name = "NAME=FILE.npy")]
    pub named: Vec<String>,
}

/// What is explained.
#[derive(Args, Debug)]
#[command(next_help_heading = "Target: what is explained")]
pub struct TargetArgs {
    /// The tensor to explain: a tensor's name, a node's name, or a layer's index as 'ouzel inspect' lists it
    /// [default: the first output, or the logits if that is a softmax]
    #[arg(long, value_name = "NAME|INDEX", allow_hyphen_values = true)]
    pub layer: Option<String>,
    /// Which classes or channels of it
    ///
    /// I is an index; I,J is one map of their sum; LABEL needs --labels, or labels in the model's metadata; top is the
    /// highest score; topN makes N maps, in files ending in _1 to _N; all is the mean over the whole tensor. The default
    /// is top, or 0 if there is only one.
    #[arg(
        long,
        visible_alias = "class",
        value_name = "I[,J...]|LABEL|top|topN|all",
        allow_hyphen_values = true,
        help = "Which classes or channels of it: indices, a label, top, topN (N maps), or all (the mean) \
                [default: top; 0 if there is only one]"
    )]
    pub filters: Vec<String>,
    /// The axis of the target on which its classes or channels are; -1 for channels-last targets
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub channel_axis: i64,
    /// Which positions of it, for segmentation, detection and sequences: all, predicted, ranges, or a mask
    /// [default: all]
    ///
    /// predicted: where the class is the highest of all. 40:80,10:50: rows 40 to 79, columns 10 to 49; a number alone is one
    /// place, such as one of many boxes. FILE.npy: where the array, of the target's rows and columns, is not 0.
    #[arg(long, value_name = "all|predicted|A:B,C:D|FILE.npy", value_hint = ValueHint::FilePath)]
    pub region: Option<String>,
    /// Explain probabilities, not the logits before a final softmax
    #[arg(long)]
    pub keep_softmax: bool,
    /// Instead of a target: weighted losses, as `[[loss]]` entries of a TOML file
    ///
    /// kind is activation_maximization (layer, filters, channel_axis, region), lp_norm (p) or total_variation (beta); each may
    /// have a weight. With keras-vis's signs, activation_maximization with weight -1 raises the activation.
    #[arg(
        long,
        value_name = "FILE.toml",
        value_hint = ValueHint::FilePath,
        conflicts_with_all = ["layer", "filters", "channel_axis", "region", "keep_softmax"]
    )]
    pub losses: Option<PathBuf>,
}

/// How it is explained: the options of all methods, out of the library's tables.
#[derive(Debug)]
pub struct MethodArgs {
    /// The method's name.
    pub method: String,
    /// Whose conventions hold.
    pub profile: String,
    /// The options that were typed, by their names in the tables.
    pub options: BTreeMap<&'static str, String>,
}

/// The options of all methods, each once, with the methods that have them; those of the default method first.
fn method_options() -> Vec<(&'static MethodOption, Vec<&'static str>)> {
    let mut all: Vec<(&'static MethodOption, Vec<&'static str>)> = Vec::new();
    for method in METHODS {
        for option in method.options {
            match all.iter_mut().find(|(known, _)| known.name == option.name) {
                Some((_, methods)) => methods.push(method.name),
                None => all.push((option, vec![method.name])),
            }
        }
    }
    all
}

/// The default of an option, and those of methods that have another one.
fn defaults(name: &str) -> Vec<String> {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for method in METHODS {
        for option in method.options.iter().filter(|option| option.name == name) {
            match all.iter_mut().find(|(default, _)| *default == option.default) {
                Some((_, methods)) => methods.push(method.name),
                None => all.push((option.default, vec![method.name])),
            }
        }
    }
    let spelled = |(index, (default, methods)): (usize, &(&str, Vec<&str>))| match (index, methods.len()) {
        (0, _) => (*default).to_owned(),
        (_, 1..=3) => format!("{}: {default}", methods.join(", ")),
        _ => format!("{}, …: {default}", methods[..2].join(", ")),
    };
    all.iter().enumerate().map(spelled).collect()
}

/// The option as clap knows it. Values are checked when the method is made of them, names at once.
fn method_argument(option: &'static MethodOption, methods: &[&str]) -> Arg {
    let default = match option.kind {
        OptionKind::Flag => String::new(),
        _ => format!(" [default: {}]", defaults(option.name).join("; ")),
    };
    let of = match methods.len() {
        _ if methods.contains(&METHODS[0].name) => String::new(),
        1..=3 => format!(" ({})", methods.join(", ")),
        count => format!(" ({}, … {count} methods)", methods[..2].join(", ")),
    };
    let argument = Arg::new(option.name)
        .long(option.name.replace('_', "-"))
        .help(format!("{}{default}{of}", option.about))
        .help_heading(METHOD_HEADING);
    match option.kind {
        OptionKind::Flag => argument.action(ArgAction::SetTrue),
        kind => {
            let argument = argument.value_name(option.placeholder).action(ArgAction::Set);
            let argument =
                argument.allow_hyphen_values(!matches!(kind, OptionKind::Name(_) | OptionKind::Names(_)));
            match kind {
                OptionKind::Name(names) => {
                    argument.value_parser(Choice::of(names())).hide_possible_values(true)
                }
                // Lists are joined again when they are read.
                OptionKind::Names(names) => {
                    argument.value_parser(Choice::of(names())).value_delimiter(',').action(ArgAction::Append)
                }
                OptionKind::Tensors => argument.value_delimiter(',').action(ArgAction::Append),
                OptionKind::Toml | OptionKind::Input | OptionKind::Array => {
                    argument.value_hint(ValueHint::FilePath)
                }
                _ => argument,
            }
        }
    }
}

const METHOD_HEADING: &str = "Method: how it is explained";

/// The options that follow the name of a method, or of several.
fn with_method_options(command: clap::Command) -> clap::Command {
    let profile = Arg::new("profile")
        .long("profile")
        .value_name("NAME")
        .default_value(PROFILES[0])
        .value_parser(Choice::of(PROFILES.iter().copied()))
        .help("Whose conventions hold where those of the field's tools differ")
        .help_heading(METHOD_HEADING);
    let options = method_options();
    let options = options.iter().map(|(option, methods)| method_argument(option, methods));
    command.args(options).arg(profile)
}

/// The profile, and the options that were typed.
fn typed_method_options(matches: &ArgMatches) -> (String, BTreeMap<&'static str, String>) {
    let mut options = BTreeMap::new();
    for (option, _) in method_options() {
        let typed = match option.kind {
            OptionKind::Flag => matches.get_flag(option.name).then(|| "yes".to_owned()),
            OptionKind::Names(_) | OptionKind::Tensors => matches
                .get_many::<String>(option.name)
                .map(|names| names.map(String::as_str).collect::<Vec<_>>().join(",")),
            _ => matches.get_one::<String>(option.name).cloned(),
        };
        options.extend(typed.map(|typed| (option.name, typed)));
    }
    (matches.get_one::<String>("profile").cloned().unwrap_or_default(), options)
}

impl Args for MethodArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let method = Arg::new("method")
            .long("method")
            .value_name("NAME")
            .default_value(METHODS[0].name)
            .value_parser(Choice::of(METHODS.iter().map(|method| method.name)))
            .help("The method; 'ouzel methods' describes them")
            .help_heading(METHOD_HEADING);
        with_method_options(command.arg(method))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for MethodArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let method = matches.get_one::<String>("method").cloned().unwrap_or_default();
        let (profile, options) = typed_method_options(matches);
        Ok(Self { method, profile, options })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Several methods: an option goes to those that have it.
#[derive(Debug)]
pub struct ComparedArgs {
    /// Their names, in the order in which they are shown.
    pub methods: Vec<String>,
    profile: String,
    options: BTreeMap<&'static str, String>,
}

impl ComparedArgs {
    /// What was typed of one of them.
    pub fn of(&self, name: &str) -> MethodArgs {
        let entry = METHODS.iter().find(|method| method.name == name);
        let inner = self.options.get("inner").map(String::as_str);
        let known = entry.map(|entry| entry.options_with(inner)).unwrap_or_default();
        let has = |option: &str| known.iter().any(|known| known.name == option);
        let options = self.options.iter().filter(|(option, _)| has(option));
        MethodArgs {
            method: name.to_owned(),
            profile: self.profile.clone(),
            options: options.map(|(option, typed)| (*option, typed.clone())).collect(),
        }
    }

    /// An option that none of them has.
    pub fn without_method(&self) -> Option<&'static str> {
        let methods = || METHODS.iter().filter(|method| self.methods.iter().any(|name| name == method.name));
        let is_known = |name: &str| methods().any(|method| method.options.iter().any(|it| it.name == name));
        self.options.keys().find(|name| !is_known(name)).copied()
    }
}

impl Args for ComparedArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let names = METHODS.iter().map(|method| method.name).chain(["all"]);
        let methods = Arg::new("methods")
            .long("methods")
            .value_name("A,B[,C...]|all")
            .required(true)
            .value_delimiter(',')
            .action(ArgAction::Append)
            .value_parser(Choice::of(names))
            .hide_possible_values(true)
            .help("The methods; 'ouzel methods' describes them. An option goes to those that have it")
            .help_heading(METHOD_HEADING);
        with_method_options(command.arg(methods))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ComparedArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut methods: Vec<String> = Vec::new();
        for name in matches.get_many::<String>("methods").into_iter().flatten() {
            match name.as_str() {
                "all" => methods.extend(METHODS.iter().map(|method| method.name.to_owned())),
                _ => methods.push(name.clone()),
            }
        }
        let (profile, options) = typed_method_options(matches);
        Ok(Self { methods, profile, options })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// How a picture becomes the network's input.
#[derive(Args, Debug)]
#[command(next_help_heading = "Pictures: how they become the network's input")]
pub struct PictureArgs {
    /// How values 0..255 become what the network was trained on
    /// [default: as the model's metadata says under 'preprocess', else raw]
    ///
    /// raw: 0..255 as they are; unit: 0..1; imagenet: torchvision's mean and std; caffe: blue first, mean subtracted
    /// (Keras's VGG and ResNet); tf: -1..1 (Keras's Inception and MobileNet).
    #[arg(long, value_name = "NAME", value_parser = Choice::of(Preset::NAMES.iter().copied()).try_map(parsed::<Preset>))]
    pub preprocess: Option<Preset>,
    /// Replaces the preset's mean: one number, or one a channel (0..1 for imagenet)
    #[arg(long, value_name = "M[,M,M]", value_delimiter = ',', allow_hyphen_values = true)]
    pub mean: Vec<f32>,
    /// Replaces the preset's standard deviation
    #[arg(long, value_name = "S[,S,S]", value_delimiter = ',', allow_hyphen_values = true)]
    pub std: Vec<f32>,
    /// Height and width for models that take any [default: the picture's own]
    #[arg(long, value_name = "HxW", value_parser = Size::from_str)]
    pub size: Option<Size>,
    /// How a picture of other proportions is brought to that size [default: stretch]
    #[arg(long, value_name = "NAME", value_parser = Choice::of(Fit::NAMES.iter().copied()).try_map(parsed::<Fit>))]
    pub fit: Option<Fit>,
    /// The order of the colors [default: rgb; bgr for caffe]
    #[arg(long, value_name = "NAME", value_parser = Choice::of(["rgb", "bgr"]).try_map(parsed::<Channels>))]
    pub channels: Option<Channels>,
    /// The order of the input's axes [default: nhwc if the last dimension is smaller than dimension 1, else nchw]
    #[arg(long, value_name = "NAME", value_parser = Choice::of(Layout::NAMES.iter().copied()).try_map(parsed::<Layout>))]
    pub layout: Option<Layout>,
}

/// What the classes are called.
#[derive(Args, Debug)]
#[command(next_help_heading = "Labels")]
pub struct LabelsArgs {
    /// What the classes are called: one a line, or JSON; or 'imagenet' [default: the model's metadata 'labels.OUTPUT']
    #[arg(long, value_name = "FILE|imagenet", value_hint = ValueHint::FilePath)]
    pub labels: Option<PathBuf>,
}

/// What is written.
#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// The picture's file, a PNG
    #[arg(short, long, value_name = "FILE.png", value_hint = ValueHint::FilePath, conflicts_with = "out_dir")]
    pub out: Option<PathBuf>,
    /// A folder for pictures INPUT-NAME.ouzel.png; it is created
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out_dir: Option<PathBuf>,
    #[command(flatten)]
    pub look: LookArgs,
    /// Replace pictures that exist already
    #[arg(long)]
    pub force: bool,
    /// The map as an array: float32, scaled to 0..1
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub npy: Option<PathBuf>,
    /// The raw signed attribution, in exactly the tensor's shape
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub raw_npy: Option<PathBuf>,
    /// Everything that is known about the result
    #[arg(long, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,
}

/// What a map looks like.
#[derive(Args, Debug)]
pub struct LookArgs {
    /// What the picture shows [default: overlay; heatmap if there is no picture to lay it over]
    #[arg(long, value_name = "NAME", value_parser = Choice::of(View::NAMES.iter().copied()).try_map(parsed::<View>))]
    pub view: Option<View>,
    /// Colors: a name, a name with _r for the reversed map, or hexadecimal colors as in 000,f00,ff0,fff
    /// [default: inferno; coolwarm for signed maps, red where the target rises]
    #[arg(long, value_name = "NAME", value_parser = Colors)]
    pub colormap: Option<Colormap>,
    /// How opaque the map is where it is strongest, 0 to 1 [default: 0.7]
    #[arg(long, value_name = "A", value_parser = opacity)]
    pub alpha: Option<f32>,
}

/// How it runs.
#[derive(Args, Debug)]
#[command(next_help_heading = "Running")]
pub struct RunArgs {
    /// f32 is fast; f32-direct does without Winograd's convolution; f64 is the reference evaluation, slow and exact
    #[arg(long, value_name = "P", default_value = "f32", value_parser = Choice::of(["f32", "f32-direct", "f64"]).try_map(parsed::<Precision>))]
    pub precision: Precision,
    /// How many threads compute [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// The seed of whatever is random; the same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Say nothing but warnings and errors
    #[arg(long)]
    pub quiet: bool,
    /// Say how long each phase took, and each step of the compiled plan
    #[arg(long)]
    pub timings: bool,
    /// Say which rule each node got on the way back
    #[arg(long)]
    pub explain_rules: bool,
}

/// Options of `export`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  the top class        ouzel export net.onnx -o explainer.onnx
  a certain class      ouzel export net.onnx -o explainer.onnx --class 20
  a class a sample     ouzel export net.onnx -o explainer.onnx --class input
                       (the file gets an int64 input 'target', one class a sample)
  any size of picture  ouzel export net.onnx -o explainer.onnx --size 480x640
  pictures             ouzel export net.onnx -o explainer.onnx --pictures --preprocess imagenet

The outputs of the file are the network's own, then 'attribution' (raw and signed, in the input's shape) and 'heatmap' \
(scaled to 0..1 for each sample: [N,H,W]).")]
pub struct ExportArgs {
    /// The network, an ONNX file; '-' for standard input
    #[arg(value_name = "MODEL", value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// The file that is written; '-' for standard output
    #[arg(short, long, value_name = "FILE.onnx", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    /// The version of the ONNX operators, 13 to 23 [default: 17, or the network's if that is newer]
    #[arg(long, value_name = "N")]
    pub opset: Option<i64>,
    /// How many noisy inputs or points of a path run at once, for each sample; more of them become a loop in the file
    /// [default: 8]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub samples_per_pass: Option<usize>,
    /// Take pictures, an input 'picture' of uint8 [N,H,W,3], and give them back with the map over them, as 'overlay'
    #[arg(long)]
    pub pictures: bool,
    /// Colors of the overlay: a name, or hexadecimal colors as in 000,f00,ff0,fff [default: inferno]
    #[arg(long, value_name = "NAME", value_parser = Colors, requires = "pictures")]
    pub colormap: Option<Colormap>,
    /// How opaque the map is where it is strongest, 0 to 1 [default: 0.7]
    #[arg(long, value_name = "A", value_parser = opacity, requires = "pictures")]
    pub alpha: Option<f32>,
    /// The seed of whatever is random; the same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Say nothing but warnings and errors
    #[arg(long)]
    pub quiet: bool,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub labels: LabelsArgs,
    #[command(flatten)]
    pub prepared: PictureArgs,
}

/// Options of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The network, an ONNX file; '-' for standard input
    #[arg(value_name = "MODEL", value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// Height and width for which it is read, if the model takes any [default: left open, or 224x224 where the network
    /// cannot be read without]
    #[arg(long, value_name = "HxW", value_parser = Size::from_str)]
    pub size: Option<Size>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `predict`.
#[derive(Args, Debug)]
pub struct PredictArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// A tensor to compute: an output or any other, named as for --layer; may be repeated [default: all outputs]
    #[arg(long = "output", value_name = "NAME", allow_hyphen_values = true)]
    pub outputs: Vec<String>,
    /// Write each as DIR/NAME.npy; the folder is created
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out_dir: Option<PathBuf>,
    /// How many classes to show
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub top: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub pictures: PictureArgs,
    #[command(flatten)]
    pub labels: LabelsArgs,
    /// How many threads compute [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Say nothing but results, warnings and errors
    #[arg(long)]
    pub quiet: bool,
}

/// Options of `compare`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  ouzel compare net.onnx cat.jpg --methods saliency,occlusion,rise --out cat.png
  ouzel compare net.onnx cat.jpg --methods all --class tabby --labels imagenet --out cat.png
  ouzel compare net.onnx cat.jpg --methods saliency,input_x_gradient --backprop-modifier guided --out cat.png")]
pub struct CompareArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub method: ComparedArgs,
    #[command(flatten)]
    pub pictures: PictureArgs,
    #[command(flatten)]
    pub labels: LabelsArgs,
    /// The picture's file
    #[arg(short, long, value_name = "FILE.png", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    #[command(flatten)]
    pub look: LookArgs,
    /// Everything that is known about the results
    #[arg(long, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Options of `visualize`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  a class              ouzel visualize net.onnx --filters 7 --out seven.png
  several, on a sheet  ouzel visualize net.onnx --layer conv3 --filters 0,1,2,3 --out filters.png
  how it comes about   ouzel visualize net.onnx --filters tabby --labels imagenet --out tabby.gif
  as keras-vis         ouzel visualize net.onnx --filters 7 --profile keras-vis --input-range 0,1 --out seven.png")]
pub struct VisualizeArgs {
    /// The network, an ONNX file; '-' for standard input
    #[arg(value_name = "MODEL", value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// The tensor whose filters are shown: a tensor's name, a node's name, or a layer's index
    /// [default: the first output, or the logits if that is a softmax]
    #[arg(long, value_name = "NAME|INDEX", allow_hyphen_values = true)]
    pub layer: Option<String>,
    /// Which classes or channels, a picture each: indices or labels; I+J raises both in one picture; all
    /// [default: all, at most 16]
    #[arg(long, visible_alias = "class", value_name = "I[,J...]|LABEL|I+J|all", allow_hyphen_values = true)]
    pub filters: Vec<String>,
    /// The axis of the layer on which its classes or channels are; -1 for channels-last layers
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub channel_axis: i64,
    /// Raise probabilities, not the logits before a final softmax
    #[arg(long)]
    pub keep_softmax: bool,
    /// The picture, or an animation of how it comes about
    #[arg(short, long, value_name = "FILE.png|FILE.gif", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    /// How many pictures an animation has
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = at_least_one)]
    pub frames: usize,
    /// Everything that is known about the result
    #[arg(long, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,
    /// ouzel: waves in decorrelated colors, many points of view; keras-vis: pixels, RMSProp, total variation and norm
    #[arg(long, value_name = "NAME", default_value = "ouzel", value_parser = Choice::of(["ouzel", "keras-vis"]))]
    pub profile: String,
    /// How often the picture is changed [default: 400; keras-vis: 200]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub steps: Option<usize>,
    /// The largest random shift in each step, as a share of the sides [default: 0.083; keras-vis: 0]
    #[arg(long, value_name = "F")]
    pub jitter: Option<f64>,
    /// The largest random turn in each step, in degrees [default: 12] (ouzel)
    #[arg(long, value_name = "DEGREES")]
    pub rotate: Option<f64>,
    /// The largest random change of scale in each step [default: 0.15] (ouzel)
    #[arg(long, value_name = "F")]
    pub scale: Option<f64>,
    /// The length of the steps [default: 0.05] (ouzel)
    #[arg(long, value_name = "F")]
    pub learning_rate: Option<f64>,
    /// How much weaker waves are the shorter they are, as the power of their frequency [default: 1] (ouzel)
    #[arg(long, value_name = "P")]
    pub decay: Option<f64>,
    /// The weight of the total variation [default: 10] (keras-vis)
    #[arg(long, value_name = "W")]
    pub tv_weight: Option<f64>,
    /// The weight of the L-6 norm [default: 10] (keras-vis)
    #[arg(long, value_name = "W")]
    pub lp_norm_weight: Option<f64>,
    /// The range of the network's input [default: 0,255] (keras-vis)
    #[arg(long, value_name = "LO,HI", value_delimiter = ',', allow_hyphen_values = true)]
    pub input_range: Vec<f64>,
    #[command(flatten)]
    pub pictures: PictureArgs,
    #[command(flatten)]
    pub labels: LabelsArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Options of `methods`.
#[derive(Args, Debug)]
pub struct MethodsArgs {
    /// A method to describe with all its options [default: a table of all]
    #[arg(value_name = "NAME", value_parser = Choice::of(METHODS.iter().map(|method| method.name)), hide_possible_values = true)]
    pub name: Option<String>,
    /// Print JSON: everything that is known of the methods
    #[arg(long)]
    pub json: bool,
    /// Print the table as Markdown
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
}

/// Options of `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Where the pictures go; the folder is created
    #[arg(long, value_name = "DIR", default_value = "ouzel-demo", value_hint = ValueHint::DirPath)]
    pub out_dir: PathBuf,
}

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// The network, an ONNX file; '-' for standard input
    #[arg(value_name = "MODEL", value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// How often it is measured, after one run to warm up
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub iterations: usize,
    /// The number of samples, if the model takes any number of them [default: 1]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub batch: Option<usize>,
    /// Explain the N highest-scoring classes on one forward pass; the times are those of all N maps together
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with_all = ["filters", "losses", "forward"])]
    pub targets: Option<usize>,
    /// Measure the prediction alone
    #[arg(long)]
    pub forward: bool,
    /// Height and width, if the model takes any [default: 224x224]
    #[arg(long, value_name = "HxW", value_parser = Size::from_str)]
    pub size: Option<Size>,
    /// The order of the input's axes [default: nhwc if the last dimension is smaller than dimension 1, else nchw]
    #[arg(long, value_name = "NAME", value_parser = Choice::of(Layout::NAMES.iter().copied()).try_map(parsed::<Layout>))]
    pub layout: Option<Layout>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub labels: LabelsArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Options of `completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Options of `man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Write ouzel.1 and a page for each verb into this folder, which is created
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out_dir: Option<PathBuf>,
}

/// One of a list of names; '-' and '_' are equal, and so are upper and lower case.
#[derive(Clone, Debug)]
struct Choice(Vec<&'static str>);

impl Choice {
    fn of(names: impl IntoIterator<Item = &'static str>) -> Self {
        Self(names.into_iter().collect())
    }
}

impl TypedValueParser for Choice {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        let name = value.to_string_lossy().trim().to_ascii_lowercase().replace('-', "_");
        match self.0.iter().find(|known| known.replace('-', "_") == name) {
            Some(known) => Ok((*known).to_owned()),
            // Always an error, in the words that clap has for it.
            None => PossibleValuesParser::new(&self.0).parse_ref(command, argument, value),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(PossibleValue::new)))
    }
}

/// A colormap: the names are shown, colors of one's own are accepted.
#[derive(Clone, Debug)]
struct Colors;

impl TypedValueParser for Colors {
    type Value = Colormap;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Colormap, clap::Error> {
        NonEmptyStringValueParser::new()
            .try_map(|text| Colormap::from_str(&text))
            .parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Colormap::names().map(PossibleValue::new)))
    }
}

/// A name that [`Choice`] has accepted as the library's value.
fn parsed<T: FromStr>(name: String) -> Result<T, T::Err> {
    name.parse()
}

/// True if an option's value is a file of rows rather than a name.
pub fn is_toml(text: &str) -> bool {
    text == "-" || text.to_ascii_lowercase().ends_with(".toml")
}

fn opacity(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(alpha) if (0.0..=1.0).contains(&alpha) => Ok(alpha),
        _ => Err("expected a number from 0 (the picture alone) to 1 (the map alone)".into()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err("expected a whole number, 1 or more".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_option_is_explained() {
        for verb in Arguments::command().get_subcommands() {
            for argument in verb.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", verb.get_name(), argument.get_id());
            }
        }
    }
}
