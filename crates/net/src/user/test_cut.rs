//! What a guest's driver does with frames that leave it work: cuts large segments, fills checksums in.

use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use crate::wire::{Gso, Sum, VnetHeader};

/// The frames that a guest's stack sees. Panics where `header` and frame do not agree.
pub(super) fn cut(header: &VnetHeader, frame: Vec<u8>, mtu: usize) -> Vec<Vec<u8>> {
    let start = usize::from(header.checksum_start.get());
    let at = start + usize::from(header.checksum_offset.get());
    if header.gso_type == Gso::None as u8 {
        assert!(frame.len() <= mtu + 14, "a frame of {} bytes", frame.len());
        let mut frame = frame;
        if header.flags & VnetHeader::NEEDS_CHECKSUM != 0 {
            finish(&mut frame, start, at);
        }
        return vec![frame];
    }
    assert_ne!(header.flags & VnetHeader::NEEDS_CHECKSUM, 0);
    let headers_len = usize::from(header.header_len.get());
    let size = usize::from(header.gso_size.get());
    let (headers, payload) = frame.split_at(headers_len);
    let pieces = payload.chunks(size).count();
    assert!(pieces > 1 && headers_len + size <= mtu + 14);
    let seq = TcpPacket::new_checked(&headers[start..]).unwrap().seq_number();
    let total = frame.len() - start;
    payload
        .chunks(size)
        .enumerate()
        .map(|(index, piece)| {
            let mut frame = [headers, piece].concat();
            set_len(&mut frame);
            let len = frame.len() - start;
            let mut tcp = TcpPacket::new_unchecked(&mut frame[start..]);
            tcp.set_seq_number(seq + index * size);
            let last = index + 1 == pieces;
            let (fin, psh) = (tcp.fin() && last, tcp.psh() && last);
            tcp.set_fin(fin);
            tcp.set_psh(psh);
            // The sum of the pseudo header has the length in it.
            let mut sum = Sum::default();
            sum.add(&frame[at..at + 2]);
            sum.add(&(len as u16).to_be_bytes());
            sum.add(&(!(total as u16)).to_be_bytes());
            let pseudo = sum.partial();
            frame[at..at + 2].copy_from_slice(&pseudo);
            finish(&mut frame, start, at);
            frame
        })
        .collect()
}

fn set_len(frame: &mut [u8]) {
    let len = frame.len() - 14;
    let mut ethernet = EthernetFrame::new_unchecked(frame);
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
            ip.set_total_len(len as u16);
            ip.fill_checksum();
        }
        EthernetProtocol::Ipv6 => {
            Ipv6Packet::new_unchecked(ethernet.payload_mut()).set_payload_len((len - 40) as u16);
        }
        other => panic!("cannot cut {other}"),
    }
}

fn finish(frame: &mut [u8], start: usize, at: usize) {
    let mut sum = Sum::default();
    sum.add(&frame[start..]);
    let sum = sum.finish();
    frame[at..at + 2].copy_from_slice(&sum);
}
