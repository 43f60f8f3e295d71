//! The one macro that every type shared with the kernel goes through.
//!
//! It makes the type `repr(C, align(8))`, refuses hidden padding at compile time (the kernel compares
//! keys byte by byte, and the verifier refuses uninitialised stack bytes), and gives it to aya as `Pod`.
//! Alignment 8 is for the verifier: LLVM merges stores to 8 bytes, and the stack only takes aligned ones.

/// Declares plain-data structs without padding: every field public, every size a multiple of 8.
#[macro_export]
macro_rules! shared {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)+ })+) => {$(
        $(#[$meta])*
        #[repr(C, align(8))]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)+ }

        const _: () = assert!(
            size_of::<$name>() == 0 $(+ size_of::<$ty>())+,
            concat!(stringify!($name), " has hidden padding"),
        );

        $crate::pod!($name);

        impl $name {
            /// All bytes zero.
            pub const ZERO: Self =
                // SAFETY: integers and arrays of them only, for which zero is a value.
                unsafe { core::mem::zeroed() };

            /// The bytes, as the kernel sees them.
            pub fn as_bytes(&self) -> &[u8] {
                // SAFETY: plain data without padding (asserted above), borrowed for as long as `self`.
                unsafe { core::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
            }
        }
    )+};
}

/// Marks a plain-data type as readable from and writable to maps by user space.
#[macro_export]
macro_rules! pod {
    ($name:ty) => {
        #[cfg(feature = "user")]
        // SAFETY: declared by `shared!`: integers only, no padding, any bytes are a value.
        unsafe impl aya::Pod for $name {}
    };
}
