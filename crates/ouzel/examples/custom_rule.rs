//! A backprop rule of your own: as a closure over the graph builder, and as a closure over arrays.

use ouzel::image::{Grid, Picture, Preprocess, Preset, Render, Tile, save_png};
use ouzel::rules::{ArrayRule, BackpropModifier, Matcher, Outcome, RuleSet, rule};
use ouzel::{Model, Saliency, visualize_saliency};

fn main() -> ouzel::Result<()> {
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");
    let model = Model::load(format!("{assets}/scene_fair.onnx"))?;
    let picture = Picture::open(format!("{assets}/pictures/scene_butterfly.png"))?;
    let prepared = Preprocess::default().preset(Preset::Unit).apply(&picture)?;
    let input = prepared.tensor.into();

    // A Relu with a soft gate on the way back: the derivative of softplus instead of a step.
    let soft = rule("soft gate", |back| {
        let gate = (back.x(0) * 10.0).sigmoid();
        Ok(Outcome::Applied(back.only_first(back.g(0) * gate)))
    });
    // The same gate with plain arrays: easier to write, but it cannot become part of an exported graph.
    let soft_array =
        ArrayRule::new("soft gate on arrays", |x, _y, g| g / x.mapv(|x| 1.0 + (-10.0 * x).exp()));

    let mut tiles = vec![Tile::new(prepared.picture.clone()).title("picture")];
    for rule in [soft, soft_array] {
        let rules = RuleSet::new().with(Matcher::op("Relu"), rule.clone());
        let options = Saliency::default().backprop_modifier(BackpropModifier::custom(rule.name(), rules));
        let saliency = visualize_saliency(&model, "animal_logits", 4, &input, &options)?;
        println!("'{}' was used on {} nodes", rule.name(), saliency.attribution.matched.len());
        let map = saliency.map.into_dimensionality().expect("one picture gives a map of height and width");
        let overlay = Render::default().overlay(prepared.picture.view(), map.view())?;
        tiles.push(Tile::new(overlay).title(rule.name()));
    }
    let out = std::env::temp_dir().join("ouzel_custom_rule.png");
    save_png(&out, Grid::default().columns(3).draw(&tiles)?.view())?;
    println!("{}", out.display());
    Ok(())
}
