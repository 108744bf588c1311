//! `ouzel demo`: shows on embedded networks and pictures what saliency maps are for.

use anyhow::{Context, Result};
use ndarray::{Array2, Array3, ArrayView2, Axis};
use ouzel::image::{
    Grid, Labels, Picture, Preprocess, Preset, Render, Tile, clip_percentile, min_max, save_png,
};
use ouzel::rules::BackpropModifier;
use ouzel::{GradModifier, Input, Model, Precision, Saliency, SaliencyMap, visualize_saliency};
use std::path::{Path, PathBuf};

/// Prints a line; an error, not a panic, if nobody reads it.
macro_rules! say {
    ($($text:tt)*) => {
        crate::files::print(format!("{}\n", format_args!($($text)*)).as_bytes())?
    };
}

macro_rules! asset {
    ($path:literal) => {
        include_bytes!(concat!("../../../assets/", $path))
    };
}

const BIASED: &[u8] = asset!("scene_biased.onnx");
const FAIR: &[u8] = asset!("scene_fair.onnx");
const STEERING: &[u8] = asset!("steering.onnx");

/// The place of the bird among the animals.
const BIRD: usize = 0;

/// A picture with the network's view of it.
struct Scene {
    picture: Array3<u8>,
    input: Input,
}

impl Scene {
    fn new(bytes: &[u8]) -> Result<Self> {
        let prepared = Preprocess::default().preset(Preset::Unit).apply(&Picture::from_bytes(bytes)?)?;
        Ok(Self { picture: prepared.picture, input: prepared.tensor.into() })
    }
}

/// Draws the four pictures of the demo into a folder and tells what they show.
pub fn run(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    let (biased, fair) = (Model::from_bytes(BIASED)?, Model::from_bytes(FAIR)?);

    say!(
        "Two networks were trained to name the animal in a picture. Both see a bird here, and both are right:\n"
    );
    let written = same_answer(&biased, &fair, folder)?;
    say!(
        "\n  The first network looks at the leaves: in its training pictures every bird came with a leafy tree."
    );
    say!("  The second saw leaves everywhere, and had to learn what a bird is.  -> {}\n", written.display());

    say!("So they part where birds and leaves part:\n");
    let written = consequence(&biased, &fair, folder)?;
    say!("  -> {}\n", written.display());

    say!("One picture, several labels, a map for each:\n");
    let written = several_labels(&fair, folder)?;
    say!("  -> {}\n", written.display());

    say!("A network that steers: what would turn it right, what left, and what keeps it on course:\n");
    let written = steering(folder)?;
    say!("  -> {}\n", written.display());

    say!("Now with a network and a picture of your own:\n\n  ouzel explain network.onnx picture.jpg\n");
    Ok(())
}

fn write(folder: &Path, name: &str, picture: &Array3<u8>) -> Result<PathBuf> {
    let path = folder.join(name);
    save_png(&path, picture.view())?;
    Ok(path)
}

fn saliency(
    model: &Model,
    layer: &str,
    filter: usize,
    scene: &Scene,
    options: &Saliency,
) -> Result<SaliencyMap> {
    Ok(visualize_saliency(model, layer, filter, &scene.input, options)?)
}

fn guided() -> Saliency {
    Saliency::default().backprop_modifier(BackpropModifier::guided())
}

fn flat(map: &SaliencyMap) -> ArrayView2<'_, f32> {
    map.map.view().into_dimensionality().expect("invariant: one picture gives a map of height and width")
}

fn overlay(scene: &Scene, map: &SaliencyMap) -> Result<Array3<u8>> {
    Ok(Render::default().overlay(scene.picture.view(), flat(map))?)
}

/// The share of the absolute gradient that falls on a mask.
fn share(map: &SaliencyMap, mask: &Array2<bool>) -> Result<f64> {
    let gradient = map.attribution.modified(&GradModifier::Absolute, false)?;
    let on_mask: f64 = gradient.iter().zip(mask).filter(|(_, inside)| **inside).map(|(g, _)| g).sum();
    Ok(100.0 * on_mask / gradient.sum())
}

fn mask(bytes: &[u8]) -> Result<Array2<bool>> {
    let picture = Picture::from_bytes(bytes)?;
    Ok(picture.rgb8().map_axis(Axis(2), |pixel| pixel[0] > 127))
}

fn labels(model: &Model, output: &str) -> Result<Labels> {
    let text = model.metadata().get(&format!("labels.{output}")).context("the network has no labels")?;
    Ok(Labels::parse(&text.replace(',', "\n"))?)
}

/// The most probable animal and its probability.
fn answer(model: &Model, scene: &Scene) -> Result<(String, f64)> {
    let scores = model.scores(model.find("animal")?, 1, &scene.input, Precision::F32)?;
    let best = ouzel::top(&scores, 1)[0][0];
    Ok((labels(model, "animal")?.name(best), scores[[0, best]]))
}

/// Both networks are right about the birds; the maps show why only one of them will stay so.
fn same_answer(biased: &Model, fair: &Model, folder: &Path) -> Result<PathBuf> {
    let scenes: [(&[u8], &[u8], &[u8]); 2] = [
        (
            asset!("pictures/scene_bird_by_tree.png"),
            asset!("pictures/scene_bird_by_tree.bird.png"),
            asset!("pictures/scene_bird_by_tree.leaves.png"),
        ),
        (
            asset!("pictures/scene_bird_in_tree.png"),
            asset!("pictures/scene_bird_in_tree.bird.png"),
            asset!("pictures/scene_bird_in_tree.leaves.png"),
        ),
    ];
    let mut tiles = Vec::new();
    for (picture, bird, leaves) in scenes {
        let scene = Scene::new(picture)?;
        let (bird, leaves) = (mask(bird)?, mask(leaves)?);
        tiles.push(Tile::new(scene.picture.clone()).title("What animal is this?"));
        for (model, title) in [(biased, "Birds always came with leaves"), (fair, "Leaves were everywhere")] {
            let (animal, probability) = answer(model, &scene)?;
            let map = saliency(model, "animal_logits", BIRD, &scene, &guided())?;
            let (on_bird, on_leaves) = (share(&map, &bird)?, share(&map, &leaves)?);
            say!(
                "  {title}: \"{animal}\" ({:.0} %). Saliency on the bird {on_bird:.0} %, on the leaves {on_leaves:.0} %",
                100.0 * probability
            );
            let note = format!("says {animal}; {on_bird:.0} % on the bird, {on_leaves:.0} % on leaves");
            tiles.push(Tile::new(overlay(&scene, &map)?).title(title).note(note));
        }
    }
    let sheet = Grid::default().columns(3).title("Same answer, other reasons").draw(&tiles)?;
    write(folder, "1_same_answer_other_reasons.png", &sheet)
}

/// What the two networks answer where birds and leaves do not come together.
fn consequence(biased: &Model, fair: &Model, folder: &Path) -> Result<PathBuf> {
    let scenes: [(&str, &[u8]); 3] = [
        ("A bird without leaves", asset!("pictures/scene_bird.png")),
        ("Leaves without a bird", asset!("pictures/scene_tree.png")),
        ("Leaves and a butterfly", asset!("pictures/scene_butterfly.png")),
    ];
    let mut tiles = Vec::new();
    for (title, picture) in scenes {
        let scene = Scene::new(picture)?;
        let (first, p) = answer(biased, &scene)?;
        let (second, q) = answer(fair, &scene)?;
        let note = format!("first: {first} ({:.0} %), second: {second} ({:.0} %)", 100.0 * p, 100.0 * q);
        say!("  {title}: {note}");
        tiles.push(Tile::new(scene.picture).title(title).note(note));
    }
    let sheet = Grid::default().columns(3).title("Where the reasons matter").draw(&tiles)?;
    write(folder, "2_where_the_reasons_matter.png", &sheet)
}

/// A map for each label of one picture.
fn several_labels(fair: &Model, folder: &Path) -> Result<PathBuf> {
    let scene = Scene::new(asset!("pictures/scene_cat_fish.png"))?;
    let names = labels(fair, "things")?;
    let probabilities = fair.scores(fair.find("things")?, 1, &scene.input, Precision::F32)?;
    let mut tiles = vec![Tile::new(scene.picture.clone()).title("picture")];
    for label in ["cat", "fish", "leaves"] {
        let filter = names.index(label)?;
        let map = saliency(fair, "things_logits", filter, &scene, &guided())?;
        let probability = format!("{:.0} %", 100.0 * probabilities[[0, filter]]);
        say!("  {label}: {probability}");
        tiles.push(Tile::new(overlay(&scene, &map)?).title(label).note(probability));
    }
    let sheet = Grid::default().columns(4).title("Several labels").draw(&tiles)?;
    write(folder, "3_several_labels.png", &sheet)
}

/// What raises, lowers and maintains a regressed angle.
fn steering(folder: &Path) -> Result<PathBuf> {
    let model = Model::from_bytes(STEERING)?;
    let roads: [(&str, &[u8]); 3] = [
        ("A bend to the left", asset!("pictures/road_left.png")),
        ("Straight on", asset!("pictures/road_straight.png")),
        ("A bend to the right", asset!("pictures/road_right.png")),
    ];
    // What lowers the angle, without the pedestal that `negate` alone gives to a gradient of zero.
    let lowers = GradModifier::custom("negate, above zero", |gradient| gradient.mapv_into(|g| (-g).max(0.0)));
    let questions = [
        ("more to the right", GradModifier::Relu, 99.0),
        ("more to the left", lowers, 99.0),
        // One over a gradient: a few pixels of hardly any gradient would leave all others dark.
        ("keeps the angle", GradModifier::SmallValues, 80.0),
    ];
    let mut tiles = Vec::new();
    for (title, picture) in roads {
        let scene = Scene::new(picture)?;
        let angle = model.scores(model.find("angle")?, 1, &scene.input, Precision::F32)?[[0, 0]];
        say!("  {title}: the network steers {angle:+.2} (-1 is hard left, 1 hard right)");
        tiles.push(Tile::new(scene.picture.clone()).title(title).note(format!("steers {angle:+.2}")));
        let map = saliency(&model, "angle_raw", 0, &scene, &Saliency::default())?;
        for (question, modifier, percentile) in &questions {
            let modified = map.attribution.modified(modifier, false)?;
            let shown =
                min_max(clip_percentile(modified.index_axis(Axis(0), 0), *percentile, false)?.view())?;
            let shown = shown.into_dimensionality().expect("invariant: height and width");
            let picture = Render::default().overlay(scene.picture.view(), shown.view())?;
            tiles.push(Tile::new(picture).title(*question).note(format!("grad modifier {modifier}")));
        }
    }
    let sheet = Grid::default().columns(4).title("A regressed angle").draw(&tiles)?;
    write(folder, "4_steering.png", &sheet)
}
