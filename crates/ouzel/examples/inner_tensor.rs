//! Which places of an inner layer matter? The gradient with respect to a tensor inside the network.

use ouzel::image::{Picture, Preprocess, Preset, Render, save_png};
use ouzel::{Method, Model, Saliency, visualize_saliency};

fn main() -> ouzel::Result<()> {
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");
    let model = Model::load(format!("{assets}/scene_fair.onnx"))?;
    let picture = Picture::open(format!("{assets}/pictures/scene_rabbit.png"))?;
    let prepared = Preprocess::default().preset(Preset::Unit).apply(&picture)?;

    let options = Saliency::default().wrt_tensor("pool2");
    let saliency = visualize_saliency(&model, "animal_logits", 3, &prepared.tensor.into(), &options)?;
    println!("the raw gradient has the shape of the tensor: {:?}", saliency.attribution.raw.shape());
    println!("the map has its height and width: {:?}", saliency.map.shape());

    let map = saliency.map.into_dimensionality().expect("one picture gives a map of height and width");
    let out = std::env::temp_dir().join("ouzel_inner_tensor.png");
    save_png(&out, Render::default().side_by_side(prepared.picture.view(), map.view())?.view())?;
    println!("{}", out.display());
    Ok(())
}
