//! Function transforms: gradients, vectorisation, and export of a traced graph to a file.

use std::path::Path;

use zmlx_sys::{Callback, UniquePtr, ffi};

use crate::array::{array_vec, from_array_vec};
use crate::{Array, Error, Result};

/// A function of arrays that a transform may trace: it must only build a graph.
pub trait Function: Fn(&[Array]) -> Result<Vec<Array>> + 'static {}
impl<F: Fn(&[Array]) -> Result<Vec<Array>> + 'static> Function for F {}

fn callback(f: impl Function) -> Callback {
    Callback::new(move |inputs| {
        let inputs = from_array_vec(inputs).map_err(|e| e.to_string())?;
        Ok(array_vec(&f(&inputs).map_err(|e| e.to_string())?))
    })
}

/// Vector-Jacobian products of `f` at `primals`: one array per primal.
pub fn vjp(f: impl Function, primals: &[Array], cotangents: &[Array]) -> Result<Vec<Array>> {
    let (primals, cotangents) = (array_vec(primals), array_vec(cotangents));
    from_array_vec(&*ffi::vjp(&callback(f), &primals, &cotangents)?)
}

/// Jacobian-vector products of `f` at `primals`: one array per output.
pub fn jvp(f: impl Function, primals: &[Array], tangents: &[Array]) -> Result<Vec<Array>> {
    let (primals, tangents) = (array_vec(primals), array_vec(tangents));
    from_array_vec(&*ffi::jvp(&callback(f), &primals, &tangents)?)
}

/// `f` applied along `in_axes` of `inputs` (-1: not mapped), results stacked along `out_axes`.
pub fn vmap(
    f: impl Function,
    inputs: &[Array],
    in_axes: &[i32],
    out_axes: &[i32],
) -> Result<Vec<Array>> {
    from_array_vec(&*ffi::vmap(&callback(f), &array_vec(inputs), in_axes, out_axes)?)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::InvalidArgument {
        message: format!("[export] the path {} is not UTF-8", path.display()),
    })
}

/// Traces `f` at `inputs` and writes its graph to `path` (`.mlxfn`).
pub fn export_function(path: &Path, f: impl Function, inputs: &[Array]) -> Result<()> {
    Ok(ffi::export_function(utf8(path)?, &callback(f), &array_vec(inputs))?)
}

/// A graph read from a file.
pub struct Imported(UniquePtr<ffi::ImportedFn>);

impl Imported {
    /// Reads a graph that [`export_function`] or MLX wrote.
    ///
    /// # Safety
    /// MLX runs what the file says without checking it: the file must be what an export wrote, and
    /// where the graph indexes, [`call`](Self::call) must be given inputs whose indices fit.
    pub unsafe fn open(path: &Path) -> Result<Self> {
        Ok(Self(ffi::import_function(utf8(path)?)?))
    }

    /// The graph applied to `inputs`.
    pub fn call(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        from_array_vec(&*ffi::imported_call(&self.0, &array_vec(inputs))?)
    }
}
