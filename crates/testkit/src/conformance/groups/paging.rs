//! Translation and its faults (SDM volume 3, chapter 4).

use crate::conformance::program::{Fault, UD, fault, gp, pf, programs};
use umbra_x86::cpuid::feature;

/// An instruction fetch that faults: the saved RIP is the address itself.
const fn fetch(error: u32, address: u64) -> Fault {
    Fault { vector: 14, error, at: None, cr2: Some(address) }
}

programs! { "paging";
    not_present in Long "
        mov ebx, 0x20000
        mov qword ptr [0x4100], 0
        invlpg [rbx]
        TRY mov al, [rbx+0x123]
        TRY mov [rbx+0x124], al
        TRY inc dword ptr [rbx]
    " { faults: &[pf(0, 0x2_0123), pf(2, 0x2_0124), pf(2, 0x2_0000)] }
    not_present_at_each_level in Long "
        mov rbx, 0x0000008000000000
        TRY mov al, [rbx]
        mov ebx, 0x40000000
        TRY mov al, [rbx]
        mov ebx, 0x00600000
        TRY mov [rbx], al
        mov rbx, 0xffff800000000000
        TRY mov al, [rbx]
    " { faults: &[pf(0, 0x80_0000_0000), pf(0, 0x4000_0000), pf(2, 0x60_0000), pf(0, 0xffff_8000_0000_0000)] }
    write_protection in Long "
        mov ebx, 0x20000
        and qword ptr [0x4100], -3
        invlpg [rbx]
        TRY mov [rbx], al
        mov al, [rbx]
        mov rax, cr0
        and rax, 0xfffffffffffeffff
        mov cr0, rax
        mov dword ptr [rbx], 0x1234
        mov eax, [rbx]
        LOG rax
    " { results: &[0x1234], faults: &[pf(3, 0x2_0000)] }
    write_protection_at_upper_levels in Long "
        mov qword ptr [0x1008], 0x22005
        mov qword ptr [0x22000], 0x3007
        mov rbx, 0x8000020000
        mov al, [rbx]
        TRY mov [rbx], al
        mov rax, cr0
        and rax, 0xfffffffffffeffff
        mov cr0, rax
        mov [rbx], al
    " { faults: &[pf(3, 0x80_0002_0000)] }
    user_right_is_needed_at_every_level in Long "
        mov qword ptr [0x1008], 0x2003
        mov rbx, 0x8000120000
        mov al, [rbx]
        GO3
        TRY mov al, [rbx]
        mov ebx, 0x120000
        mov al, [rbx]
    " { faults: &[pf(5, 0x80_0012_0000)] }
    user_access_to_supervisor_pages in Long "
        GO3
        TRY mov al, [0x20000]
        TRY mov [0x20000], al
        mov ebx, 0x120000
        mov [rbx], al
        mov al, [rbx]
        TRY mov al, [0x600000]
        TRY mov [0x600000], al
    " { faults: &[pf(5, 0x2_0000), pf(7, 0x2_0000), pf(4, 0x60_0000), pf(6, 0x60_0000)] }
    user_write_to_a_read_only_page in Long "
        mov ebx, 0x120000
        and qword ptr [0x4900], -3
        invlpg [rbx]
        mov rax, cr0
        and rax, 0xfffffffffffeffff
        mov cr0, rax
        mov [rbx], al
        GO3
        TRY mov [rbx], al
    " { faults: &[pf(7, 0x12_0000)] }
    user_fetch_from_a_supervisor_page in Long "
        GO3
        mov ebx, 0x20000
        TRY jmp rbx
    " { faults: &[fetch(0x15, 0x2_0000)] }
    no_execute in Long "
        mov byte ptr [0x20000], 0xc3
        mov ebx, 0x20000
        call rbx
        bts qword ptr [0x4100], 63
        invlpg [rbx]
        mov al, [rbx]
        mov [rbx], al
        SETVAR RESUME, 2f
        call rbx
    2:  pop rax
    " { faults: &[fetch(0x11, 0x2_0000)] }
    no_execute_is_reserved_without_nxe in Long "
        bts qword ptr [0x4100], 63
        mov ecx, 0xc0000080
        rdmsr
        and eax, 0xfffff7ff
        wrmsr
        mov ebx, 0x20000
        invlpg [rbx]
        TRY mov al, [rbx]
        TRY mov [rbx], al
        TRY jmp rbx
    " { faults: &[pf(9, 0x2_0000), pf(0xb, 0x2_0000), fetch(9, 0x2_0000)] }
    fetch_from_a_page_that_is_not_there in Long "
        mov ebx, 0x600000
        TRY jmp rbx
        mov ecx, 0xc0000080
        rdmsr
        and eax, 0xfffff7ff
        wrmsr
        TRY jmp rbx
    " { faults: &[fetch(0x10, 0x60_0000), fetch(0, 0x60_0000)] }
    reserved_bits in Long "
        or qword ptr [0x2000], 0x80
        mov rax, cr3
        mov cr3, rax
        nop
    " { faults: &[], end: crate::conformance::program::End::TripleFault }
    reserved_bit_in_the_top_table in Long "
        mov qword ptr [0x1008], 0x2087
        mov rbx, 0x8000000000
        TRY mov al, [rbx]
        TRY mov [rbx], al
    " { faults: &[pf(9, 0x80_0000_0000), pf(0xb, 0x80_0000_0000)] }
    reserved_bits_of_a_large_page in Long "
        or qword ptr [0x3008], 0x2000
        mov ebx, 0x200000
        invlpg [rbx]
        TRY mov al, [rbx]
        GO3
        TRY mov [rbx], al
    " { faults: &[pf(9, 0x20_0000), pf(0xf, 0x20_0000)] }
    accessed_and_dirty in Long "
        mov ebx, 0x20000
        and qword ptr [0x4100], 0xffffffffffffff9f
        invlpg [rbx]
        mov rax, [0x4100]
        and eax, 0x60
        LOG rax
        mov al, [rbx]
        mov rax, [0x4100]
        and eax, 0x60
        LOG rax
        mov [rbx], al
        mov rax, [0x4100]
        and eax, 0x60
        LOG rax
        mov rax, [0x3000]
        and eax, 0x20
        LOG rax
        mov rax, [0x1000]
        and eax, 0x20
        LOG rax
    " { results: &[0, 0x20, 0x60, 0x20, 0x20] }
    dirty_is_set_on_the_first_write_after_reads in Long "
        mov ebx, 0x20000
        mov al, [rbx]
        mov rax, [0x4100]
        and eax, 0x60
        LOG rax
        cmp dword ptr [rbx], 0
        mov rax, [0x4100]
        and eax, 0x60
        LOG rax
        add dword ptr [rbx], 0
        mov rax, [0x4100]
        and eax, 0x60
        LOG rax
    " { results: &[0x20, 0x20, 0x60] }
    accessed_and_dirty_of_a_large_page in Long "
        mov ebx, 0x200000
        mov al, [rbx]
        mov rax, [0x3008]
        and eax, 0x60
        LOG rax
        mov [rbx], al
        mov rax, [0x3008]
        and eax, 0x60
        LOG rax
    " { results: &[0x20, 0x60] }
    dirty_again_after_it_was_cleared_and_flushed in Long "
        mov ebx, 0x20000
        mov [rbx], al
        and qword ptr [0x4100], 0xffffffffffffffbf
        invlpg [rbx]
        mov [rbx], al
        mov rax, [0x4100]
        and eax, 0x60
        LOG rax
    " { results: &[0x60] }
    a_fault_sets_no_dirty_bit in Long "
        mov ebx, 0x120000
        mov rax, [0x4900]
        and rax, 0xffffffffffffff9d
        mov [0x4900], rax
        invlpg [rbx]
        GO3
        TRY mov [rbx], al
        BACK0
        mov rax, [0x4900]
        and eax, 0x40
        LOG rax
    " { results: &[0], faults: &[pf(7, 0x12_0000)] }
    invlpg_shows_the_new_page in Long "
        mov ebx, 0x20000
        mov dword ptr [rbx], 1
        mov dword ptr [0x21000], 2
        mov eax, [rbx]
        mov ecx, eax
        mov qword ptr [0x4100], 0x21003
        invlpg [rbx+5]
        mov eax, [rbx]
        LOG rax
        mov qword ptr [0x4100], 0x20003
        invlpg [rbx+0xfff]
        mov eax, [rbx]
        LOG rax
    " { results: &[2, 1] }
    cr3_load_shows_the_new_page in Long "
        mov ebx, 0x20000
        mov dword ptr [rbx], 1
        mov dword ptr [0x21000], 2
        mov eax, [rbx]
        mov qword ptr [0x4100], 0x21003
        mov rax, cr3
        mov cr3, rax
        mov eax, [rbx]
        LOG rax
    " { results: &[2] }
    becoming_present_needs_no_flush in Long "
        mov ebx, 0x600000
        TRY mov al, [rbx]
        mov qword ptr [0x3018], 0x200083
        mov dword ptr [0x200000], 7
        mov eax, [rbx]
        LOG rax
    " { results: &[7], faults: &[pf(0, 0x60_0000)] }
    more_rights_after_a_fault_need_no_flush in Long "
        mov ebx, 0x20000
        and qword ptr [0x4100], -3
        invlpg [rbx]
        mov al, [rbx]
        TRY mov [rbx], al
        or qword ptr [0x4100], 2
        mov dword ptr [rbx], 9
        mov eax, [rbx]
        LOG rax
    " { results: &[9], faults: &[pf(3, 0x2_0000)] }
    invlpg_of_a_large_page in Long "
        mov ebx, 0x200000
        mov dword ptr [rbx+0x1000], 1
        mov eax, [rbx+0x1000]
        mov qword ptr [0x3008], 0
        invlpg [rbx+0x123456]
        TRY mov eax, [rbx+0x1000]
    " { faults: &[pf(0, 0x20_1000)] }
    large_page_becomes_small_ones in Long "
        mov ebx, 0x200000
        mov dword ptr [rbx], 5
        mov dword ptr [0x21000], 6
        mov qword ptr [0x22000], 0x21003
        mov qword ptr [0x3008], 0x22003
        mov rax, cr3
        mov cr3, rax
        mov eax, [rbx]
        LOG rax
        TRY mov eax, [rbx+0x1000]
    " { results: &[6], faults: &[pf(0, 0x20_1000)] }
    global_pages_survive_cr3 in Long "
        mov rax, cr4
        or eax, 0x80
        mov cr4, rax
        mov ebx, 0x20000
        or qword ptr [0x4100], 0x100
        mov dword ptr [rbx], 1
        mov dword ptr [0x21000], 2
        mov eax, [rbx]
        mov qword ptr [0x4100], 0x21103
        mov rax, cr3
        mov cr3, rax
        mov rax, cr4
        and eax, 0xffffff7f
        mov cr4, rax
        mov eax, [rbx]
        LOG rax
        mov qword ptr [0x4100], 0x20003
        invlpg [rbx]
        mov eax, [rbx]
        LOG rax
    " { results: &[2, 1] }
    invlpg_drops_global_pages in Long "
        mov rax, cr4
        or eax, 0x80
        mov cr4, rax
        mov ebx, 0x20000
        or qword ptr [0x4100], 0x100
        mov dword ptr [rbx], 1
        mov dword ptr [0x21000], 2
        mov eax, [rbx]
        mov qword ptr [0x4100], 0x21103
        invlpg [rbx]
        mov eax, [rbx]
        LOG rax
    " { results: &[2] }
    aliases_see_each_other in Long "
        mov qword ptr [0x4108], 0x20003
        mov ebx, 0x21000
        invlpg [rbx]
        mov dword ptr [0x20000], 0x11
        mov eax, [rbx]
        LOG rax
        mov dword ptr [rbx+4], 0x22
        mov eax, [0x20004]
        LOG rax
    " { results: &[0x11, 0x22] }
    smep in Long "
        mov rax, cr4
        or eax, 0x100000
        mov cr4, rax
        mov ebx, 0x120000
        mov byte ptr [rbx], 0xc3
        SETVAR RESUME, 2f
        call rbx
    2:  pop rax
        mov rax, cr4
        and eax, 0xffefffff
        mov cr4, rax
        call rbx
    " { faults: &[fetch(0x11, 0x12_0000)], needs: &[feature::SMEP] }
    smap in Long "
        mov ebx, 0x120000
        mov dword ptr [rbx], 5
        mov rax, cr4
        or eax, 0x200000
        mov cr4, rax
        TRY mov eax, [rbx]
        TRY mov [rbx], eax
        stac
        mov eax, [rbx]
        LOG rax
        mov [rbx], eax
        clac
        TRY mov eax, [rbx]
        mov eax, [0x20000]
        LOG rax
    " { results: &[5, 0], faults: &[pf(1, 0x12_0000), pf(3, 0x12_0000), pf(1, 0x12_0000)], needs: &[feature::SMAP] }
    smap_holds_for_descriptor_loads_even_with_ac in Long "
        mov rax, cr4
        or eax, 0x200000
        mov cr4, rax
        stac
        mov rax, [0x6010]
        mov [0x120008], rax
        mov word ptr [0x605a], 0
        mov byte ptr [0x605c], 0x12
        mov eax, 0x58
        lldt ax
        mov ecx, 0xc
        TRY mov ds, ecx
        clac
        TRY mov ds, ecx
    " { faults: &[pf(1, 0x12_0008), pf(1, 0x12_0008)], needs: &[feature::SMAP] }
    stac_clac_need_ring_0_and_smap in Long "
        GO3
        TRY stac
        TRY clac
    " { faults: &[UD, UD], needs: &[feature::SMAP] }
    string_copy_stops_at_the_missing_page in Long "
        mov qword ptr [0x4110], 0
        mov ebx, 0x22000
        invlpg [rbx]
        mov esi, 0x30000
        mov edi, 0x21ff8
        mov ecx, 8
        mov rax, 0x1122334455667788
        mov [rsi], rax
        TRY rep movsw
        LOG rcx
        LOG rsi
        LOG rdi
        mov rax, [0x21ff8]
        LOG rax
    " { results: &[4, 0x30008, 0x22000, 0x1122_3344_5566_7788], faults: &[pf(2, 0x2_2000)] }
    an_access_across_two_pages_faults_before_it_writes in Long "
        mov qword ptr [0x4110], 0
        mov ebx, 0x22000
        invlpg [rbx]
        mov qword ptr [0x21ff8], -1
        mov rax, 0
        TRY mov [0x21ffc], rax
        mov rax, [0x21ff8]
        LOG rax
        TRY add [0x21ffd], eax
        TRY mov rax, [0x21ffe]
    " { results: &[u64::MAX], faults: &[pf(2, 0x2_2000), pf(2, 0x2_2000), pf(0, 0x2_2000)] }
    instruction_across_two_pages in Long "
        mov byte ptr [0x20ffe], 0xb8
        mov dword ptr [0x20fff], 0x11223344
        mov byte ptr [0x21003], 0xc3
        mov ebx, 0x20ffe
        call rbx
        LOG rax
        mov qword ptr [0x4108], 0
        mov ecx, 0x21000
        invlpg [rcx]
        SETVAR RESUME, 2f
        SETVAR ORIGIN, 2f
        call rbx
    2:  pop rax
    " { results: &[0x1122_3344], faults: &[fetch(0x10, 0x2_1000)] }
    cr2_keeps_its_value in Long "
        mov rax, 0x123456789
        mov cr2, rax
        xor eax, eax
        mov rax, cr2
        LOG rax
    " { results: &[0x1_2345_6789] }
    push_fault_leaves_the_stack_pointer in Long "
        GO3
        mov rcx, rsp
        mov esp, 0x600000
        TRY push rax
        LOG rsp
        TRY call 2f
    2:  LOG rsp
        mov rsp, rcx
    " { results: &[0x60_0000, 0x60_0000], faults: &[pf(6, 0x5f_fff8), pf(6, 0x5f_fff8)] }
    pop_to_a_missing_page_leaves_the_stack_pointer in Long "
        mov rcx, rsp
        push 5
        mov ebx, 0x600000
        TRY pop qword ptr [rbx]
        sub rcx, rsp
        LOG rcx
    " { results: &[8], faults: &[pf(2, 0x60_0000)] }
    one_gib_page in Long "
        mov qword ptr [0x2008], 0x83
        mov ebx, 0x40020000
        mov dword ptr [0x20000], 0x77
        mov eax, [rbx]
        LOG rax
        mov qword ptr [0x2008], 0x2083
        invlpg [rbx]
        TRY mov eax, [rbx]
    " { results: &[0x77], faults: &[pf(9, 0x4002_0000)], needs: &[feature::PDPE1GB] }
    pcid in Long "
        mov rax, cr4
        or eax, 0x20000
        mov cr4, rax
        mov ebx, 0x20000
        mov dword ptr [rbx], 1
        mov dword ptr [0x21000], 2
        mov eax, [rbx]
        mov eax, 0x1005
        mov cr3, rax
        mov eax, [rbx]
        mov qword ptr [0x4100], 0x21003
        mov eax, 0x1005
        mov cr3, rax
        mov eax, [rbx]
        LOG rax
        mov rax, cr3
        LOG rax
        TRY mov rax, cr0
        mov rax, 0x8000000000001000
        mov cr3, rax
        mov rax, cr3
        LOG rax
        mov rax, cr3
        mov cr3, rax
        mov eax, [rbx]
        LOG rax
    " { results: &[2, 0x1005, 0x1000, 2], needs: &[feature::PCID] }
    invpcid in Long "
        mov ebx, 0x20000
        mov dword ptr [rbx], 1
        mov dword ptr [0x21000], 2
        mov eax, [rbx]
        mov qword ptr [0x30000], 0
        mov qword ptr [0x30008], 0x20000
        mov qword ptr [0x4100], 0x21003
        xor ecx, ecx
        invpcid rcx, [0x30000]
        mov eax, [rbx]
        LOG rax
        mov qword ptr [0x4100], 0x20003
        mov ecx, 2
        invpcid rcx, [0x30000]
        mov eax, [rbx]
        LOG rax
        mov ecx, 4
        TRY invpcid rcx, [0x30000]
        mov qword ptr [0x30000], 0x1000
        mov ecx, 0
        TRY invpcid rcx, [0x30000]
    " { results: &[2, 1], faults: &[gp(0), gp(0)], needs: &[feature::INVPCID] }
    two_level_tables in Paged "
        mov dword ptr [0x4080], 0
        mov ebx, 0x20000
        invlpg [ebx]
        TRY mov al, [ebx]
        mov dword ptr [0x4080], 0x21001
        invlpg [ebx]
        TRY mov [ebx], al
        mov dword ptr [0x21000], 0x55
        mov eax, [ebx]
        LOG eax
        mov eax, [0x4080]
        LOG eax
        mov ebx, 0x800000
        TRY mov [ebx], al
    " { results: &[0x55, 0x21021], faults: &[pf(0, 0x2_0000), pf(3, 0x2_0000), pf(2, 0x80_0000)] }
    two_level_user_pages in Paged "
        GO3
        TRY mov eax, [0x20000]
        mov ebx, 0x120000
        mov [ebx], eax
        TRY mov [0x6000], eax
        mov ecx, 0x20000
        TRY jmp ecx
    " { faults: &[pf(5, 0x2_0000), pf(7, 0x6000), fetch(5, 0x2_0000)] }
    four_mib_pages in Paged "
        mov dword ptr [0x1004], 0x83
        mov ebx, 0x420000
        mov dword ptr [0x20000], 0x99
        mov eax, [ebx]
        LOG eax
        mov eax, [0x1004]
        LOG eax
        mov [ebx], eax
        mov eax, [0x1004]
        LOG eax
    " { results: &[0x99, 0xa3, 0xe3] }
    four_mib_bit_without_pse in Paged "
        mov eax, cr4
        and eax, 0xffffffef
        mov cr4, eax
        mov dword ptr [0x1004], 0x4083
        mov ebx, 0x420000
        mov dword ptr [0x20000], 0x98
        mov eax, [ebx]
        LOG eax
    " { results: &[0x98] }
    reserved_bit_of_a_4_mib_page in Paged "
        mov dword ptr [0x1004], 0x200083
        mov ebx, 0x420000
        TRY mov eax, [ebx]
    " { faults: &[pf(9, 0x42_0000)] }
    smep_and_smap_in_two_level_tables in Paged "
        mov eax, cr4
        or eax, 0x300000
        mov cr4, eax
        mov ebx, 0x120000
        TRY mov eax, [ebx]
        stac
        mov byte ptr [ebx], 0xc3
        TRY jmp ebx
        clac
    " { faults: &[pf(1, 0x12_0000), fetch(0x11, 0x12_0000)], needs: &[feature::SMEP, feature::SMAP] }
    pae_tables in Pae "
        mov ebx, 0x20000
        and dword ptr [0x4100], 0xfffffffd
        invlpg [ebx]
        TRY mov [ebx], al
        mov dword ptr [0x4104], 0x80000000
        invlpg [ebx]
        mov al, [ebx]
        TRY jmp ebx
        mov ebx, 0x40000000
        TRY mov al, [ebx]
        mov ebx, 0x200000
        mov dword ptr [ebx], 5
        mov eax, [0x3008]
        and eax, 0x60
        LOG eax
    " { results: &[0x60], faults: &[pf(3, 0x2_0000), fetch(0x11, 0x2_0000), pf(0, 0x4000_0000)] }
    pae_pointers_are_loaded_with_cr3 in Pae "
        mov dword ptr [0x2008], 0x3001
        mov ebx, 0x40020000
        mov eax, cr3
        mov cr3, eax
        mov dword ptr [0x20000], 0x66
        mov eax, [ebx]
        LOG eax
    " { results: &[0x66] }
    pae_pointers_with_reserved_bits in Pae "
        mov dword ptr [0x2010], 0x3003
        mov eax, cr3
        TRY mov cr3, eax
        mov dword ptr [0x2010], 0x3001
        mov cr3, eax
    " { faults: &[gp(0)] }
    pae_reserved_bits in Pae "
        mov dword ptr [0x3014], 0x40000000
        mov dword ptr [0x3010], 0x83
        mov ebx, 0x400000
        TRY mov al, [ebx]
        mov dword ptr [0x3014], 0
        mov dword ptr [0x3010], 0x2083
        TRY mov al, [ebx]
    " { faults: &[pf(9, 0x40_0000), pf(9, 0x40_0000)] }
    paging_off_and_on in Paged "
        mov dword ptr [0x4080], 0x21003
        mov ebx, 0x20000
        invlpg [ebx]
        mov dword ptr [0x21000], 0x22
        mov eax, [ebx]
        LOG eax
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov dword ptr [0x20000], 0x11
        mov eax, [ebx]
        LOG eax
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        mov eax, [ebx]
        LOG eax
    " { results: &[0x22, 0x11, 0x22] }
    from_two_level_to_pae_tables in Paged "
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov eax, cr4
        or eax, 0x20
        mov cr4, eax
        mov edi, 0x22000
        mov dword ptr [edi], 0x23001
        mov dword ptr [0x23000], 0x83
        mov dword ptr [0x23008], 0x83
        mov cr3, edi
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        mov dword ptr [0x20000], 0x33
        mov eax, [0x220000]
        LOG eax
    " { results: &[0x33] }
    null_fault_of_user_mode_has_the_right_stack in Long "
        GO3
        mov ebx, 0x600000
        TRY mov al, [rbx]
        BACK0
        mov rax, [0xb018]
        LOG rax
        mov rax, [0xb028]
        LOG rax
        mov rax, [0xb030]
        LOG rax
    " { results: &[0x43, 0x11_0000, 0x3b], faults: &[pf(4, 0x60_0000)] }
    debug_exceptions_do_not_touch_cr2 in Long "
        mov rax, 0x77
        mov cr2, rax
        TRY ud2
        mov rax, cr2
        LOG rax
    " { results: &[0x77], faults: &[fault(6)] }
}
