//! The units: what exporters write for an operation when its op is not in the operator set that they write for.

use super::pattern::{self, Pattern};
use std::sync::LazyLock;

/// A unit and the ways of writing it, the largest first.
struct Row {
    /// ONNX's name for it, where there is one.
    name: &'static str,
    family: &'static str,
    /// What it is a function of; those marked `#` are constants with any number of elements, those marked `!` are not
    /// values less their own mean.
    inputs: &'static [&'static str],
    patterns: &'static [&'static str],
    /// Parts of the patterns that have names; `|` separates alternatives.
    with: &'static [(&'static str, &'static str)],
}

/// Rows that come first have the first choice of nodes.
const ROWS: &[Row] = &[
    Row {
        name: "HardSwish",
        family: "activation",
        inputs: &["x"],
        patterns: &["x * ramp / 6", "x * unit", "x * HardSigmoid[sixth](x)"],
        with: &[
            ("ramp", "Clip(x + 3, 0, 6) | Min(Relu(x + 3), 6) | Min(Max(x + 3, 0), 6)"),
            ("unit", "Clip(x / 6 + 0.5, 0, 1) | Min(Relu(x / 6 + 0.5), 1) | Min(Max(x / 6 + 0.5, 0), 1)"),
        ],
    },
    Row {
        name: "HardSigmoid",
        family: "activation",
        inputs: &["x"],
        patterns: &["ramp / 6", "unit"],
        with: &[
            ("ramp", "Clip(x + 3, 0, 6) | Min(Relu(x + 3), 6) | Min(Max(x + 3, 0), 6)"),
            ("unit", "Clip(line, 0, 1) | Min(Relu(line), 1) | Min(Max(line, 0), 1)"),
            ("line", "x / 6 + 0.5 | 0.2 * x + 0.5"),
        ],
    },
    Row {
        name: "Gelu",
        family: "activation",
        inputs: &["x"],
        patterns: &[
            "0.5 * x * (1 + Erf(x / 1.4142135623730951))",
            "0.5 * x * (1 + Tanh(inner))",
            "x * Sigmoid(2 * inner)",
        ],
        // √(2/π) = 0.7978845608
        with: &[(
            "inner",
            "0.7978845608 * (x + 0.044715 * x^3) | 0.7978845608 * x * (1 + 0.044715 * x^2) \
             | 0.7978845608 * x + 0.0356774081 * x^3",
        )],
    },
    Row {
        name: "Swish",
        family: "activation",
        inputs: &["x"],
        patterns: &["x * gate", "x * Sigmoid(1.702 * x)"],
        with: &[("gate", "Sigmoid(x) | 1 / (1 + Exp(-1 * x))")],
    },
    Row {
        name: "Mish",
        family: "activation",
        inputs: &["x"],
        patterns: &["x * Tanh(softplus)"],
        with: &[("softplus", "Softplus(x) | Where(Greater(x, 20), x, Softplus(x)) | Log(1 + Exp(x))")],
    },
    Row {
        name: "Softplus",
        family: "activation",
        inputs: &["x"],
        patterns: &[
            "positive + Log(1 + Exp(-1 * Abs(x)))",
            "Where(Greater(x, 20), x, Softplus(x))",
            "Log(1 + Exp(x))",
        ],
        with: &[("positive", "Relu(x) | Max(x, 0)")],
    },
    Row {
        name: "PRelu",
        family: "activation",
        inputs: &["x", "#slope"],
        patterns: &["Relu(x) + ~ * slope * Relu(-1 * x)"],
        with: &[],
    },
    Row { name: "LeakyRelu", family: "activation", inputs: &["x"], patterns: &["Max(x, ε * x)"], with: &[] },
    Row {
        name: "GroupNormalization",
        family: "norm",
        inputs: &["x", "#scale", "#bias"],
        patterns: &[
            "Reshape(norm, _) * scale + bias",
            "Reshape(grouped * inverse * scale + bias - mean * inverse * scale, _)",
            "Reshape((grouped - mean) * inverse * scale + bias, _)",
            "Reshape(norm, _) * scale",
            "Reshape(norm, _)",
        ],
        with: &[
            (
                "norm",
                "InstanceNormalization(grouped, _, _) | (grouped - mean) * inverse \
                 | grouped * inverse - mean * inverse",
            ),
            ("grouped", "Reshape(x, _)"),
            ("mean", "ReduceMean[groups](grouped)"),
            ("variance", "ReduceMean[groups]((grouped - mean)^2) | ReduceMean[groups](grouped^2) - mean^2"),
            ("inverse", "1 / (variance + ε)^0.5"),
        ],
    },
    Row {
        name: "LayerNormalization",
        family: "norm",
        inputs: &["x", "#scale", "#bias"],
        patterns: AFFINE,
        with: &[
            ("mean", "ReduceMean[last](x)"),
            ("variance", "ReduceMean[last]((x - mean)^2) | ReduceMean[last](x^2) - mean^2"),
            ("inverse", "1 / (variance + ε)^0.5"),
        ],
    },
    Row {
        name: "LayerNormalization",
        family: "norm",
        inputs: &["x", "#scale", "#bias"],
        patterns: AFFINE,
        with: &[
            ("mean", "ReduceMean[channels](x)"),
            ("variance", "ReduceMean[channels]((x - mean)^2) | ReduceMean[channels](x^2) - mean^2"),
            ("inverse", "1 / (variance + ε)^0.5"),
        ],
    },
    Row {
        name: "InstanceNormalization",
        family: "norm",
        inputs: &["x", "#scale", "#bias"],
        patterns: AFFINE,
        with: &[
            ("mean", "ReduceMean[area](x)"),
            ("variance", "ReduceMean[area]((x - mean)^2) | ReduceMean[area](x^2) - mean^2"),
            ("inverse", "1 / (variance + ε)^0.5"),
        ],
    },
    Row {
        name: "RMSNormalization",
        family: "norm",
        inputs: &["!x", "#scale"],
        patterns: &["x * inverse * scale", "x * inverse"],
        with: &[
            ("inverse", "1 / (square + ε)^0.5"),
            ("square", "ReduceMean[last](x^2) | ReduceMean[channels](x^2)"),
        ],
    },
    Row {
        name: "Attention",
        family: "attention",
        inputs: &["query", "key", "value", "mask", "window", "#scale"],
        patterns: &["MatMul(weights, value)", "Einsum(weights, value)"],
        with: &[
            // A row that is masked altogether becomes zeros.
            ("weights", "soft | Where(IsNaN(soft), 0, soft)"),
            ("soft", "Softmax[last](scores)"),
            (
                "scores",
                "~ * pairs + mask | ~ * pairs | Where(_, ~ * pairs, mask) | Where(_, mask, ~ * pairs) \
                 | Reshape(Reshape(~ * pairs + mask, _) + window, _) \
                 | Reshape(Reshape(scale * pairs + mask, _) + window, _) | scale * pairs + mask | scale * pairs",
            ),
            ("pairs", "MatMul(~ * query, ~ * key) | Einsum(~ * query, ~ * key)"),
        ],
    },
];

const AFFINE: &[&str] = &[
    "(x - mean) * inverse * scale + bias",
    "x * inverse * scale + bias - mean * inverse * scale",
    "(x - mean) * inverse * scale",
    "(x - mean) * inverse",
    "x * inverse - mean * inverse",
];

/// A unit with its patterns read.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) family: &'static str,
    pub(super) inputs: &'static [&'static str],
    pub(super) patterns: Vec<Pattern>,
}

/// The table as it is searched for.
pub(super) static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    let kind = |row: &Row| {
        let read = |text: &&str| {
            pattern::read(text, row.inputs, row.with)
                .unwrap_or_else(|error| panic!("invariant: {} is described well: {error}", row.name))
        };
        let mut patterns: Vec<Pattern> = Vec::new();
        for pattern in row.patterns.iter().flat_map(read) {
            if !patterns.contains(&pattern) {
                patterns.push(pattern);
            }
        }
        Kind { name: row.name, family: row.family, inputs: row.inputs, patterns }
    };
    ROWS.iter().map(kind).collect()
});
