//! The walk over a thread's Python frames.
pub const FRAME_SPAN_MAX: usize = 128;
pub const CODE_SPAN_MAX: usize = 256;
pub struct Walk;
