//! Why a cat rather than a fish? A loss of your own on the graph builder, mixed with one of the library's.

use ouzel::image::{Picture, Preprocess, Preset, Render, save_png};
use ouzel::losses::{TotalVariation, WeightedLoss, expression};
use ouzel::{GradModifier, Method, Model, Saliency, visualize_saliency_with_losses};

fn main() -> ouzel::Result<()> {
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");
    let model = Model::load(format!("{assets}/scene_fair.onnx"))?;
    let picture = Picture::open(format!("{assets}/pictures/scene_cat_fish.png"))?;
    let prepared = Preprocess::default().preset(Preset::Unit).apply(&picture)?;

    let cat_rather_than_fish = expression("cat - fish", |context| {
        let logits = context.tensor("things_logits")?;
        let logit = |filter| logits.gather(1, vec![filter]).squeeze([1]);
        Ok(logit(1) - logit(2))
    });
    let losses = [
        WeightedLoss { loss: cat_rather_than_fish, weight: 1.0 },
        WeightedLoss::new(TotalVariation::default(), -0.01),
    ];
    let options = Saliency::default().grad_modifier(GradModifier::Relu);
    let saliency = visualize_saliency_with_losses(&model, &losses, &prepared.tensor.into(), &options)?;
    for loss in &saliency.attribution.losses {
        println!("{} (weight {}): {:.4}", loss.name, loss.weight, loss.weighted[0]);
    }

    let map = saliency.map.into_dimensionality().expect("one picture gives a map of height and width");
    let out = std::env::temp_dir().join("ouzel_custom_loss.png");
    save_png(&out, Render::default().side_by_side(prepared.picture.view(), map.view())?.view())?;
    println!("what makes it a cat rather than a fish: {}", out.display());
    Ok(())
}
