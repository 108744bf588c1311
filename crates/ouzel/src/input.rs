//! What a model is run on: an array for each of its inputs.

use crate::dim::display_shape;
use crate::error::{Result, bail};
use crate::graph::ValueId;
use crate::model::Model;
use crate::tensor::Tensor;
use ndarray::{ArrayBase, Axis, Data, Dimension};

/// Arrays for the inputs of a model: one for its only input, or several by name.
///
/// An array without the batch axis gets one of length 1.
///
/// ```
/// use ouzel::Input;
/// let one: Input = ndarray::Array4::<f32>::zeros((1, 3, 8, 8)).into();
/// let two = Input::named("image", ndarray::Array4::<f32>::zeros((1, 3, 8, 8)))
///     .and("speed", ndarray::arr2(&[[30.0f32]]));
/// # let _ = (one, two);
/// ```
#[derive(Clone, Debug)]
pub struct Input {
    tensors: Vec<(Option<String>, Tensor)>,
}

impl<S: Data<Elem = f32>, D: Dimension> From<ArrayBase<S, D>> for Input {
    fn from(array: ArrayBase<S, D>) -> Self {
        Self::from(Tensor::from(array.to_owned().into_dyn()))
    }
}

impl From<Tensor> for Input {
    fn from(tensor: Tensor) -> Self {
        Self { tensors: vec![(None, tensor)] }
    }
}

impl Input {
    /// An array for the input of this name.
    pub fn named<S: Data<Elem = f32>, D: Dimension>(name: &str, array: ArrayBase<S, D>) -> Self {
        Self::named_tensor(name, Tensor::from(array.to_owned().into_dyn()))
    }

    /// A tensor of any element type for the input of this name.
    pub fn named_tensor(name: &str, tensor: Tensor) -> Self {
        Self { tensors: vec![(Some(name.to_owned()), tensor)] }
    }

    /// Adds an array for another input.
    #[must_use]
    pub fn and<S: Data<Elem = f32>, D: Dimension>(self, name: &str, array: ArrayBase<S, D>) -> Self {
        self.and_tensor(name, Tensor::from(array.to_owned().into_dyn()))
    }

    /// Adds a tensor of any element type for another input.
    #[must_use]
    pub fn and_tensor(mut self, name: &str, tensor: Tensor) -> Self {
        self.tensors.push((Some(name.to_owned()), tensor));
        self
    }

    /// The tensors by input, in the model's element types and with the batch axis.
    ///
    /// # Errors
    /// If a name, an element type or a rank does not fit, or an element is not finite.
    pub fn resolve(&self, model: &Model) -> Result<Vec<(ValueId, Tensor)>> {
        let graph = model.graph();
        let mut resolved: Vec<(ValueId, Tensor)> = Vec::new();
        for (name, tensor) in &self.tensors {
            let id = match name {
                Some(name) => model.input(name)?,
                None => model.main_input(),
            };
            let fact = graph.fact(id);
            let name = &graph.value(id).name;
            if resolved.iter().any(|(other, _)| *other == id) {
                bail!(input, "input '{name}' is given twice");
            }
            let mut tensor = tensor.clone();
            if tensor.dtype() != fact.dtype {
                match (tensor.dtype(), fact.dtype) {
                    (found, expected) if found.is_float() && expected.is_float() => {
                        tensor = tensor.cast(expected)
                    }
                    (found, expected) if found.is_integer() && expected.is_integer() => {
                        tensor = tensor.cast(expected)
                    }
                    (found, expected) => {
                        bail!(input, "input '{name}': expected elements of {expected}, found {found}")
                    }
                }
            }
            if tensor.shape().len() + 1 == fact.rank() {
                tensor = with_batch_axis(&tensor);
            }
            if tensor.shape().len() != fact.rank() {
                bail!(
                    input,
                    "input '{name}': expected shape {} (rank {}), found {:?} (rank {})",
                    display_shape(&fact.shape),
                    fact.rank(),
                    tensor.shape(),
                    tensor.shape().len()
                );
            }
            if tensor.is_empty() {
                bail!(input, "input '{name}' is empty: its shape is {:?}", tensor.shape());
            }
            let bad = match tensor.dtype().is_float() {
                true => tensor.to_f64().iter().filter(|value| !value.is_finite()).count(),
                false => 0,
            };
            if bad > 0 {
                bail!(input, "input '{name}': {bad} of {} elements are NaN or infinite", tensor.len());
            }
            resolved.push((id, tensor));
        }
        Ok(resolved)
    }
}

fn with_batch_axis(tensor: &Tensor) -> Tensor {
    macro_rules! insert {
        ($($variant:ident),*) => {
            match tensor { $(Tensor::$variant(x) => Tensor::$variant(x.clone().insert_axis(Axis(0)))),* }
        };
    }
    insert!(F32, F64, I64, I32, I16, I8, U64, U32, U16, U8, Bool)
}
