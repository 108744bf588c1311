//! What does one filter of a convolution look at? Its spatial mean is explained like a class.

use ouzel::image::{Grid, Picture, Preprocess, Preset, Render, Tile, save_png};
use ouzel::rules::BackpropModifier;
use ouzel::{Model, Saliency, visualize_saliency};

fn main() -> ouzel::Result<()> {
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");
    let model = Model::load(format!("{assets}/scene_fair.onnx"))?;
    let picture = Picture::open(format!("{assets}/pictures/scene_bird_in_tree.png"))?;
    let prepared = Preprocess::default().preset(Preset::Unit).apply(&picture)?;
    let input = prepared.tensor.into();
    let options = Saliency::default().backprop_modifier(BackpropModifier::guided());

    let mut tiles = Vec::new();
    for filter in [3, 8, 21, 40] {
        let saliency = visualize_saliency(&model, "relu3", filter, &input, &options)?;
        let activation = saliency.attribution.losses[0].weighted[0];
        println!("filter {filter} of relu3: mean activation {activation:.4}");
        for warning in &saliency.attribution.warnings {
            println!("  {warning}");
        }
        let map = saliency.map.into_dimensionality().expect("one picture gives a map of height and width");
        let overlay = Render::default().overlay(prepared.picture.view(), map.view())?;
        tiles.push(Tile::new(overlay).title(format!("relu3, filter {filter}")));
    }
    let out = std::env::temp_dir().join("ouzel_convolution_filter.png");
    save_png(&out, Grid::default().columns(4).draw(&tiles)?.view())?;
    println!("{}", out.display());
    Ok(())
}
