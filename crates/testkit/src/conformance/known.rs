//! Programs that fail somewhere for a reason that is not ours, by name, each with its reason.
//!
//! The list is long because the host with hardware virtualization, in which the suite runs under KVM, is itself emulated: QEMU's TCG does the
//! guest's instructions, and lacks checks that processors make. Each entry was held against the manual.

/// Where a program is run, as far as known failures depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// The software engine.
    Soft,
    /// KVM on real hardware.
    Kvm,
    /// KVM in a host that QEMU's TCG emulates.
    KvmOnTcg,
}

/// Where the software engine runs.
pub fn platform_of_soft() -> Platform {
    Platform::Soft
}

/// Where KVM runs, on this host.
pub fn platform_of_kvm() -> Platform {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if processor.contains("QEMU TCG") { Platform::KvmOnTcg } else { Platform::Kvm }
}

use Platform::{Kvm, KvmOnTcg};

/// Programs with one reason.
struct Known {
    platforms: &'static [Platform],
    /// What the platform does instead, against which rule.
    reason: &'static str,
    /// It must not even be tried: the platform does not survive it.
    is_fatal: bool,
    /// As `group.name`.
    programs: &'static [&'static str],
}

const fn tcg(reason: &'static str, programs: &'static [&'static str]) -> Known {
    Known { platforms: &[KvmOnTcg], reason, is_fatal: false, programs }
}

const fn any_kvm(reason: &'static str, programs: &'static [&'static str]) -> Known {
    Known { platforms: &[Kvm, KvmOnTcg], reason, is_fatal: false, programs }
}

const KNOWN: &[Known] = &[
    tcg(
        "TCG checks no segment limits and no segment types on data accesses (SDM volume 3, 5.3 and 5.4)",
        &[
            "addressing.segment_base_and_limit",
            "addressing.null_and_code_segments_as_data",
            "addressing.real_mode_limit",
            "addressing.stack_segment_limit",
            "modes.v86_limit",
            "strings.limit_fault_in_the_middle",
        ],
    ),
    tcg(
        "TCG accepts non-canonical values for segment and table bases (SDM volume 2, WRMSR, WRFSBASE, LGDT)",
        &[
            "addressing.fs_base_of_a_high_half",
            "addressing.fsgsbase_instructions",
            "descriptors.tables_are_stored",
        ],
    ),
    tcg(
        "TCG adds the base of ES in 64-bit mode, where it counts as zero (SDM volume 1, 3.4.2.1)",
        &["addressing.other_segments_have_no_base_in_64_bit_mode"],
    ),
    tcg(
        "TCG raises #GP for non-canonical stack addresses, not #SS (SDM volume 1, 3.3.7.1)",
        &["addressing.non_canonical_through_the_stack_segment"],
    ),
    tcg(
        "TCG faults at the target of a jump to a non-canonical address, not at the jump (SDM volume 2, JMP, RET, CALL, IRET)",
        &["addressing.jump_to_a_non_canonical_address", "descriptors.iret_to_a_non_canonical_address"],
    ),
    tcg(
        "TCG reads first where an instruction reads and writes, so that the error code lacks W (SDM volume 3, 4.7)",
        &["paging.not_present", "paging.an_access_across_two_pages_faults_before_it_writes"],
    ),
    tcg(
        "TCG reports reserved bits with P clear (SDM volume 3, 4.7)",
        &[
            "paging.no_execute_is_reserved_without_nxe",
            "paging.reserved_bit_in_the_top_table",
            "paging.reserved_bits_of_a_large_page",
            "paging.one_gib_page",
            "paging.reserved_bit_of_a_4_mib_page",
            "paging.pae_reserved_bits",
        ],
    ),
    tcg(
        "TCG lets EFLAGS.AC lift SMAP for implicit accesses (SDM volume 3, 4.6.1)",
        &["paging.smap_holds_for_descriptor_loads_even_with_ac"],
    ),
    tcg(
        "with nested paging AMD processors read PAE pointers when they are used, not when CR3 is loaded (AMD64 APM volume 2, 15.25.10)",
        &["paging.pae_pointers_with_reserved_bits"],
    ),
    tcg(
        "TCG looks at the hypervisor's intercept of WBINVD and INVD before the privilege level (AMD64 APM volume 2, 15.7)",
        &["privilege.cache_flushes_in_ring_3"],
    ),
    tcg(
        "without nRIP save, a software interrupt whose delivery is interrupted by a nested page fault is delivered again behind the instruction",
        &[
            "privilege.int_to_a_gate_of_ring_0",
            "interrupts.interrupt_beyond_the_table",
            "interrupts.real_mode_vectors",
        ],
    ),
    tcg(
        "TCG's SYSCALL drops the arithmetic flags (SDM volume 2, SYSCALL)",
        &["privilege.syscall_keeps_status_flags"],
    ),
    tcg(
        "AMD processors have no SYSENTER in long mode, and KVM does not emulate it in 64-bit mode",
        &["privilege.sysenter_and_sysexit"],
    ),
    tcg("TCG has no #AC (SDM volume 3, 6.15)", &["interrupts.alignment_check"]),
    tcg("TCG raises #MF at WAIT only (SDM volume 1, 8.7)", &["interrupts.x87_error_by_exception_16"]),
    tcg(
        "TCG has no #XM and takes every value into MXCSR (SDM volume 1, 11.5)",
        &["interrupts.simd_error_by_exception_19"],
    ),
    tcg(
        "TCG never sets EXT for a fault in the delivery of another (SDM volume 3, 6.13)",
        &["interrupts.external_flag_in_error_codes", "interrupts.page_fault_in_delivery_is_no_double_fault"],
    ),
    tcg(
        "KVM intercepts #GP and injects it again, and TCG forgets that it was delivering it (SDM volume 3, 6.15, double fault)",
        &["interrupts.double_fault_from_general_protection"],
    ),
    tcg("TCG takes every value into CR8 (SDM volume 2, MOV CR)", &["interrupts.cr8_reserved_bits"]),
    tcg(
        "TCG does not compare the RPL of a null SS with CPL (SDM volume 2, MOV)",
        &["descriptors.null_stack_selector_in_64_bit_ring_0"],
    ),
    tcg("TCG decodes MOV to CS (SDM volume 2, MOV)", &["descriptors.wrong_types"]),
    tcg(
        "TCG does not set the accessed bit in a far return (SDM volume 3, 3.4.5.1)",
        &["descriptors.accessed_bit"],
    ),
    tcg("TCG takes a null selector into TR (SDM volume 2, LTR)", &["descriptors.task_register"]),
    tcg(
        "TCG does not check the upper half of system descriptors (SDM volume 3, 3.5.2)",
        &["descriptors.sixty_four_bit_system_descriptors"],
    ),
    Known {
        platforms: &[KvmOnTcg],
        reason: "TCG hangs where paging is enabled with EFER.LME but without CR4.PAE",
        is_fatal: true,
        programs: &["modes.long_mode_needs_pae"],
    },
    tcg(
        "TCG executes some opcodes that 64-bit mode has not (SDM volume 2, appendix A, i64)",
        &["flags.undefined_opcodes", "modes.opcodes_that_64_bit_mode_lost", "modes.salc_in_64_bit_mode"],
    ),
    tcg(
        "TCG takes reserved bits into CR0, CR3 and CR4 (SDM volume 2, MOV CR)",
        &[
            "modes.control_register_0_rules",
            "modes.control_register_3_rules",
            "modes.control_register_4_rules",
        ],
    ),
    tcg(
        "TCG loads a code segment that is both 64 and 32 bits wide (SDM volume 3, 5.2.1)",
        &["modes.cs_with_both_l_and_d"],
    ),
    tcg(
        "TCG begins a task switch before it asks the hypervisor, which then finds the new task busy",
        &["modes.task_gate_for_an_exception"],
    ),
    tcg(
        "TCG executes the rest of a block that has changed itself (SDM volume 3, 11.6: on processors the check is by physical address)",
        &["code.the_very_next_instruction", "code.later_in_the_same_block"],
    ),
    tcg(
        "TCG now and then goes on with code that another processor has written over, after an interrupt of that one's too",
        &["code.written_by_another_processor", "code.rewritten_while_another_runs_it"],
    ),
    tcg(
        "TCG takes every value into MXCSR by FXRSTOR and XRSTOR (SDM volume 1, 10.5 and 13.8)",
        &["vector.fxrstor_brings_all_back", "vector.xrstor_errors"],
    ),
    tcg(
        "TCG does not set the exponent of a register that MMX writes (SDM volume 1, 9.5.1)",
        &["vector.mmx_shares_the_x87_registers"],
    ),
    tcg("TCG does XSAVE while CR0.TS is set (SDM volume 2, XSAVE)", &["vector.avx_with_task_switched"]),
    tcg("TCG takes non-canonical addresses into MSRs (SDM volume 2, WRMSR)", &["system.msr_errors"]),
    tcg(
        "TCG does not translate the operand of CLFLUSH (SDM volume 2, CLFLUSH)",
        &["system.clflush_of_a_missing_page"],
    ),
    tcg(
        "TCG steps once more at the end of a repeated instruction (SDM volume 3, 17.3.1.4)",
        &["debug.single_step_of_rep_stops_after_each_element"],
    ),
    tcg("TCG keeps reserved bits of DR6 (SDM volume 3, 17.2.3)", &["debug.debug_registers_and_cr4_de"]),
    tcg(
        "TCG sets RF in the image of a trap (SDM volume 3, 17.3.1.1)",
        &["debug.resume_flag_is_set_for_faults"],
    ),
    any_kvm(
        "KVM's task switch ignores the TSS's T flag (SDM volume 3, 7.2.1)",
        &["debug.task_breakpoint_bit"],
    ),
    any_kvm("KVM reads string input ahead of what it can store", &["io.string_input_to_a_missing_page"]),
    any_kvm(
        "KVM does not emulate vector instructions beyond plain moves, and ends",
        &["io.avx_of_nothing", "io.memory_mapped_quarter_vectors"],
    ),
    any_kvm("KVM does MONITOR and MWAIT as NOP, shown or not", &["system.monitor_and_mwait_are_undefined"]),
    any_kvm(
        "hardware virtualization cannot hide an instruction of the processor that has no intercept",
        &["system.rdpid_is_undefined"],
    ),
];

fn find(program: &str, platform: Platform) -> Option<&'static Known> {
    KNOWN.iter().find(|k| k.platforms.contains(&platform) && k.programs.contains(&program))
}

/// The reason why `program` is known to fail on `platform`.
pub(super) fn reason(program: &str, platform: Platform) -> Option<&'static str> {
    find(program, platform).map(|k| k.reason)
}

/// Whether `platform` does not survive `program`.
pub(super) fn is_fatal(program: &str, platform: Platform) -> bool {
    find(program, platform).is_some_and(|k| k.is_fatal)
}
