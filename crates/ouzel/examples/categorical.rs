//! Which pixels speak for one class? Saliency of one class of a dense layer, drawn over the picture.

use ouzel::image::{Picture, Preprocess, Preset, Render, save_png};
use ouzel::rules::BackpropModifier;
use ouzel::{Model, Saliency, visualize_saliency};

fn main() -> ouzel::Result<()> {
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");
    let model = Model::load(format!("{assets}/scene_fair.onnx"))?;
    let picture = Picture::open(format!("{assets}/pictures/scene_bird_by_tree.png"))?;
    let prepared = Preprocess::default().preset(Preset::Unit).apply(&picture)?;

    // `animal_logits` is the layer before the softmax, and 0 is the bird: a logit rises only with the evidence for its own
    // class, a probability also when the other classes fall.
    let options = Saliency::default().backprop_modifier(BackpropModifier::guided());
    let saliency = visualize_saliency(&model, "animal_logits", 0, &prepared.tensor.into(), &options)?;

    let map = saliency.map.into_dimensionality().expect("one picture gives a map of height and width");
    let out = std::env::temp_dir().join("ouzel_categorical.png");
    save_png(&out, Render::default().side_by_side(prepared.picture.view(), map.view())?.view())?;
    println!("the bird's logit is {:.2}", saliency.attribution.losses[0].weighted[0]);
    println!("what speaks for it: {}", out.display());
    Ok(())
}
