//! A picture with several labels: one map a label, and one map for all of them together.

use ouzel::image::{Grid, Picture, Preprocess, Preset, Render, Tile, save_png};
use ouzel::rules::BackpropModifier;
use ouzel::{Filters, Model, Saliency, visualize_saliency};

fn main() -> ouzel::Result<()> {
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");
    let model = Model::load(format!("{assets}/scene_fair.onnx"))?;
    let picture = Picture::open(format!("{assets}/pictures/scene_cat_fish.png"))?;
    let prepared = Preprocess::default().preset(Preset::Unit).apply(&picture)?;
    let input = prepared.tensor.into();
    let options = Saliency::default().backprop_modifier(BackpropModifier::guided());

    // Labels of the output `things`; its logits are `things_logits`. Several filters are added up.
    let targets =
        [("cat", Filters::from(1)), ("fish", Filters::from(2)), ("cat and fish", Filters::from([1, 2]))];
    let mut tiles = vec![Tile::new(prepared.picture.clone()).title("picture")];
    for (label, filters) in targets {
        let saliency = visualize_saliency(&model, "things_logits", filters, &input, &options)?;
        let logit = saliency.attribution.losses[0].weighted[0];
        println!("{label}: {logit:.2}");
        let map = saliency.map.into_dimensionality().expect("one picture gives a map of height and width");
        let overlay = Render::default().overlay(prepared.picture.view(), map.view())?;
        tiles.push(Tile::new(overlay).title(label).note(format!("logit {logit:.2}")));
    }
    let out = std::env::temp_dir().join("ouzel_multi_label.png");
    save_png(&out, Grid::default().columns(4).draw(&tiles)?.view())?;
    println!("{}", out.display());
    Ok(())
}
