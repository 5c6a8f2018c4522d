use iced_x86::Code;

use super::{Bits, Column, Operand, Table};

#[test]
fn a_table_is_read_as_it_was_written() {
    let mut table = Table::default();
    table.add(Column::Single(Bits::SixtyFour), "Add_rm32_r32", Operand::Memory, 3);
    table.add(Column::Single(Bits::SixtyFour), "Add_rm32_r32", Operand::Memory, 4);
    table.add(Column::Sequences(Bits::ThirtyTwo), "Add_rm32_r32", Operand::Register, 0);
    let again = Table::parse(&table.text()).expect("its own text");
    assert_eq!(again, table);
    assert_eq!(again.below(Column::Single(Bits::SixtyFour), 8), [("Add_rm32_r32", "memory", 7)]);
    assert_eq!(again.below(Column::Single(Bits::SixtyFour), 7), []);
    assert_eq!(again.below(Column::Sequences(Bits::ThirtyTwo), 1), [("Add_rm32_r32", "register", 0)]);
}

#[test]
fn what_is_no_table_is_refused() {
    for text in ["", "form\n", &format!("{}\nAdd,register,1,2\n", super::HEADER)] {
        assert!(Table::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn kinds_of_operands() {
    let all = Operand::all_of;
    assert_eq!(all(Code::Add_rm32_r32), [Operand::Register, Operand::Memory]);
    assert_eq!(all(Code::Lea_r64_m), [Operand::Memory]);
    assert_eq!(all(Code::Movsb_m8_m8), [Operand::Memory]);
    assert_eq!(all(Code::Cdq), [Operand::Register]);
    let kinds = [Operand::Register, Operand::Memory, Operand::Broadcast];
    assert_eq!(all(Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er), kinds);
}
