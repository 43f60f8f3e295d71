//! AF_XDP (`Documentation/networking/af_xdp.rst`): frames in memory that the kernel and this process share, rings
//! on which they change hands, and a socket for each queue of a device.
//!
//! [`umem`] is the memory, [`ring`] the four rings of a socket, [`socket`] what makes and binds them. Whoever
//! holds a [`Frame`] is its only owner: it cannot be copied, and is made from nothing but a free chunk or a
//! descriptor that the kernel has given back ([`umem::Umem::claim`]).

pub mod memory;
pub mod ring;
pub mod socket;
pub mod umem;

pub use socket::{Options, Socket, XskError, is_there};
pub use umem::{Frame, Umem};
