//! The end of a recorded step: [`Recording`](crate::recording::Recording) is what it makes.

use zmlx_sys::{UniquePtr, ffi};

use super::{Ask, Parameters};
use crate::array::array_vec;
use crate::{Array, Dtype, Result};

/// What a [`Recording`](crate::recording::Recording) is asked: it has no parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecordedStep;

impl Ask for RecordedStep {
    fn primitive(&self) -> &'static str {
        "recorded_step"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
    }

    /// Tokens.
    fn dtype(&self) -> Option<Dtype> {
        Some(Dtype::U32)
    }
}

/// What a step hands on to the next one.
pub(crate) struct Carried<'a> {
    /// `[N]` `uint32`, of which the first counts; and the position, `[N]` `int32`.
    pub(crate) inputs: [&'a Array; 2],
    /// `[1]` `uint32`, not computed.
    pub(crate) chosen: &'a Array,
    /// States as the step finds them, and as it leaves them.
    pub(crate) states: [Vec<&'a Array>; 2],
}

/// Takes the step and records it.
pub(crate) fn recorded_step(carried: Carried<'_>) -> Result<UniquePtr<ffi::Recording>> {
    let Carried { inputs: [token, position], chosen, states } = carried;
    let [before, after] = states.map(array_vec);
    let (token, position, chosen) = (token.raw(), position.raw(), chosen.raw());
    Ok(ffi::fused_recorded_step(token, position, chosen, &before, &after)?)
}
