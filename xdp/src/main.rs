#![no_std]
#![no_main]
use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use fsm_common::bpf::FSM_TEST;
#[xdp]
pub fn fsm_xdp(ctx: XdpContext) -> u32 {
    let (d, e) = (ctx.data(), ctx.data_end());
    if d + 34 > e { return xdp_action::XDP_DROP; }
    let a = unsafe { ((d + 26) as *const [u8; 8]).read() };
    let k = u64::from_be_bytes(a);
    if FSM_TEST.get_ptr(&k).is_some() { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! { loop {} }
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
