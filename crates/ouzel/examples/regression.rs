//! What raises, lowers and maintains a regressed value? One gradient, three grad modifiers.

use ouzel::image::{Grid, Picture, Preprocess, Preset, Render, Tile, save_png};
use ouzel::{GradModifier, Method, Model, Saliency, visualize_saliency};

fn main() -> ouzel::Result<()> {
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");
    let model = Model::load(format!("{assets}/steering.onnx"))?;
    let picture = Picture::open(format!("{assets}/pictures/road_left.png"))?;
    let prepared = Preprocess::default().preset(Preset::Unit).apply(&picture)?;
    let input = prepared.tensor.into();

    let questions = [
        ("steer more to the right", GradModifier::Relu),
        ("steer more to the left", GradModifier::Negate),
        ("keep the angle", GradModifier::SmallValues),
    ];
    let mut tiles = vec![Tile::new(prepared.picture.clone()).title("picture")];
    for (question, modifier) in questions {
        let options = Saliency::default().grad_modifier(modifier);
        let saliency = visualize_saliency(&model, "angle", 0, &input, &options)?;
        println!("{question}: the angle is {:.2}", saliency.attribution.losses[0].weighted[0]);
        let map = saliency.map.into_dimensionality().expect("one picture gives a map of height and width");
        let overlay = Render::default().overlay(prepared.picture.view(), map.view())?;
        tiles.push(Tile::new(overlay).title(question).note(options.settings.grad_modifier.name()));
    }
    let out = std::env::temp_dir().join("ouzel_regression.png");
    save_png(&out, Grid::default().columns(4).draw(&tiles)?.view())?;
    println!("{}", out.display());
    Ok(())
}
