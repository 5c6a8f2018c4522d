//! Numbers of model-specific registers (SDM volume 4; AMD64 APM volume 2; KVM's paravirtual ones from Linux's
//! documentation of KVM MSRs).

macro_rules! msrs {
    ($($name:ident = $n:literal;)*) => {
        $(#[doc = concat!("MSR ", stringify!($n), ".")] pub const $name: u32 = $n;)*
        /// The name of an MSR in this list.
        pub fn name(n: u32) -> Option<&'static str> {
            match n { $($n => Some(stringify!($name)),)* _ => None }
        }
    };
}
msrs! {
    IA32_TSC = 0x10; IA32_PLATFORM_ID = 0x17; IA32_APIC_BASE = 0x1b; IA32_FEATURE_CONTROL = 0x3a; IA32_TSC_ADJUST = 0x3b;
    IA32_SPEC_CTRL = 0x48; IA32_PRED_CMD = 0x49; IA32_BIOS_SIGN_ID = 0x8b; MSR_PLATFORM_INFO = 0xce; IA32_MTRRCAP = 0xfe;
    IA32_ARCH_CAPABILITIES = 0x10a; IA32_SYSENTER_CS = 0x174; IA32_SYSENTER_ESP = 0x175; IA32_SYSENTER_EIP = 0x176;
    IA32_MCG_CAP = 0x179; IA32_MCG_STATUS = 0x17a; IA32_MISC_ENABLE = 0x1a0; IA32_DEBUGCTL = 0x1d9;
    IA32_MTRR_PHYSBASE0 = 0x200; IA32_MTRR_FIX64K_00000 = 0x250; IA32_MTRR_FIX16K_80000 = 0x258; IA32_MTRR_FIX4K_C0000 = 0x268;
    IA32_PAT = 0x277; IA32_MTRR_DEF_TYPE = 0x2ff; IA32_TSC_DEADLINE = 0x6e0; X2APIC_FIRST = 0x800; X2APIC_LAST = 0x8ff;
    IA32_XSS = 0xda0; IA32_EFER = 0xc000_0080; IA32_STAR = 0xc000_0081; IA32_LSTAR = 0xc000_0082; IA32_CSTAR = 0xc000_0083;
    IA32_FMASK = 0xc000_0084; IA32_FS_BASE = 0xc000_0100; IA32_GS_BASE = 0xc000_0101; IA32_KERNEL_GS_BASE = 0xc000_0102;
    IA32_TSC_AUX = 0xc000_0103; MSR_SYSCFG = 0xc001_0010; MSR_HWCR = 0xc001_0015;
    KVM_WALL_CLOCK = 0x11; KVM_SYSTEM_TIME = 0x12; KVM_WALL_CLOCK_NEW = 0x4b56_4d00; KVM_SYSTEM_TIME_NEW = 0x4b56_4d01;
    KVM_ASYNC_PF_EN = 0x4b56_4d02; KVM_STEAL_TIME = 0x4b56_4d03; KVM_PV_EOI_EN = 0x4b56_4d04; KVM_POLL_CONTROL = 0x4b56_4d05;
}

/// IA32_APIC_BASE at reset: enabled, at 0xFEE0_0000; the bootstrap processor's has bit 8 set as well.
pub const APIC_BASE_RESET: u64 = 0xfee0_0800;
/// IA32_APIC_BASE: this is the bootstrap processor.
pub const APIC_BASE_BSP: u64 = 1 << 8;
/// IA32_PAT at reset.
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;
