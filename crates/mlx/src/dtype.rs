//! Element types.

pub use half::{bf16, f16};
use zmlx_sys::ffi::DtypeId;

macro_rules! dtypes {
    ($($variant:ident, $id:ident, $name:literal, $size:literal, $doc:literal;)*) => {
        /// Element type of an [`Array`](crate::Array).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Dtype {
            $(#[doc = $doc] $variant,)*
        }

        impl Dtype {
            /// Every dtype.
            pub const ALL: &[Dtype] = &[$(Dtype::$variant),*];

            /// MLX's name: `bfloat16`, `uint32`, ...
            pub fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name),* }
            }

            /// Bytes per element.
            pub fn size(self) -> usize {
                match self { $(Dtype::$variant => $size),* }
            }

            pub(crate) fn id(self) -> DtypeId {
                match self { $(Dtype::$variant => DtypeId::$id),* }
            }

            pub(crate) fn from_id(id: DtypeId) -> Dtype {
                match id {
                    $(DtypeId::$id => Dtype::$variant,)*
                    _ => unreachable!("the bridge maps only the dtypes listed here"),
                }
            }
        }
    };
}

dtypes! {
    Bool, Bool, "bool", 1, "`bool`, one byte";
    U8, Uint8, "uint8", 1, "unsigned, 8 bits";
    U16, Uint16, "uint16", 2, "unsigned, 16 bits";
    U32, Uint32, "uint32", 4, "unsigned, 32 bits";
    U64, Uint64, "uint64", 8, "unsigned, 64 bits";
    I8, Int8, "int8", 1, "signed, 8 bits";
    I16, Int16, "int16", 2, "signed, 16 bits";
    I32, Int32, "int32", 4, "signed, 32 bits";
    I64, Int64, "int64", 8, "signed, 64 bits";
    F16, Float16, "float16", 2, "IEEE binary16";
    F32, Float32, "float32", 4, "IEEE binary32";
    F64, Float64, "float64", 8, "IEEE binary64 (CPU only)";
    Bf16, Bfloat16, "bfloat16", 2, "bfloat16";
    C64, Complex64, "complex64", 8, "two binary32";
}

impl Dtype {
    /// Whether this is a type of integers; `bool` is not.
    pub fn is_integer(self) -> bool {
        matches!(
            self,
            Dtype::U8
                | Dtype::U16
                | Dtype::U32
                | Dtype::U64
                | Dtype::I8
                | Dtype::I16
                | Dtype::I32
                | Dtype::I64
        )
    }

    /// Whether this is a real floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::F32 | Dtype::F64 | Dtype::Bf16)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is the element of a [`Dtype`]: plain data of the same size and meaning.
pub trait Element: Copy + 'static + sealed::Sealed {
    /// The dtype whose elements this type is.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($t:ty => $d:ident),* $(,)?) => {
        $(impl sealed::Sealed for $t {}
        impl Element for $t { const DTYPE: Dtype = Dtype::$d; })*
    };
}

elements! {
    bool => Bool, u8 => U8, u16 => U16, u32 => U32, u64 => U64, i8 => I8, i16 => I16, i32 => I32,
    i64 => I64, f16 => F16, f32 => F32, f64 => F64, bf16 => Bf16,
}
