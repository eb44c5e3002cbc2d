//! The kernel programs and their maps. Thin: the walk is in the library's `python` module.
//!
//! `program::sample` runs on every CPU's perf event; `program::processes` keeps the map of
//! targets right between two looks of the daemon.

#![no_std]
#![no_main]

mod program {
    mod capture;
    mod kernel;
    mod maps;
    mod namespace;
    mod native;
    mod processes;
    mod sample;
    mod send;
    mod stepwise;
    mod task;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
