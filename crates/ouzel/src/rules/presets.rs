//! The presets: files of rules that have a name.

/// Name and text of each preset, in the order in which they are shown; the first is the default.
pub(super) const PRESETS: &[(&str, &str)] = &[
    ("epsilon_plus_flat", include_str!("presets/epsilon_plus_flat.toml")),
    ("epsilon_plus", include_str!("presets/epsilon_plus.toml")),
    ("epsilon_alpha2_beta1", include_str!("presets/epsilon_alpha2_beta1.toml")),
    ("epsilon_alpha2_beta1_flat", include_str!("presets/epsilon_alpha2_beta1_flat.toml")),
    ("epsilon_gamma_box", include_str!("presets/epsilon_gamma_box.toml")),
    ("epsilon", include_str!("presets/epsilon.toml")),
    ("deep_taylor", include_str!("presets/deep_taylor.toml")),
    ("excitation_backprop", include_str!("presets/excitation_backprop.toml")),
    ("attnlrp", include_str!("presets/attnlrp.toml")),
    ("cp_lrp", include_str!("presets/cp_lrp.toml")),
    ("pattern_net", include_str!("presets/pattern_net.toml")),
    ("pattern_attribution", include_str!("presets/pattern_attribution.toml")),
    ("guided_backprop", include_str!("presets/guided_backprop.toml")),
    ("deconvnet", include_str!("presets/deconvnet.toml")),
    ("beta_smooth", include_str!("presets/beta_smooth.toml")),
    ("common", include_str!("presets/common.toml")),
];
