//! Users of the guest, by passwd(5) and group(5).

use core::ffi::CStr;

use crate::sys::{self, O_NOCTTY, O_RDONLY};

/// Of these files no more is looked at.
pub const FILE_MAX: usize = 64 << 10;
const GROUPS_MAX: usize = 64;

/// Who runs a command.
#[derive(Default)]
pub struct User<'a> {
    pub name: &'a [u8],
    pub id: u32,
    pub group: u32,
    pub home: &'a [u8],
    pub shell: &'a [u8],
}

/// Reads a file, as far as there is room.
pub fn read_file<'a>(path: &CStr, space: &'a mut [u8; FILE_MAX]) -> &'a [u8] {
    let Ok(fd) = sys::open(path, O_RDONLY | O_NOCTTY, 0) else { return &[] };
    let mut len = 0;
    while let Some(rest) = space.get_mut(len..).filter(|rest| !rest.is_empty())
        && let Ok(n @ 1..) = sys::read(fd, rest)
    {
        len += n;
    }
    sys::close(fd);
    space.get(..len).unwrap_or_default()
}

fn number(text: &[u8]) -> Option<u32> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// The user of this name in `passwd`; without a name, the administrator, who is there without a file too.
pub fn find<'a>(passwd: &'a [u8], name: &'a [u8]) -> Option<User<'a>> {
    let wanted = if name.is_empty() { b"root" } else { name };
    for line in passwd.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b':');
        let mut next = || fields.next();
        if next() != Some(wanted) {
            continue;
        }
        let (_, id, group, _, home, shell) = (next()?, next()?, next()?, next()?, next()?, next()?);
        let (id, group) = (number(id)?, number(group)?);
        return Some(User { name: wanted, id, group, home, shell });
    }
    (wanted == b"root").then_some(User { name: wanted, home: b"/root", ..User::default() })
}

/// Becomes this user, with its groups.
pub fn become_user(user: &User<'_>) -> sys::Result<()> {
    let mut space = [0; FILE_MAX];
    let (mut groups, mut count) = ([0; GROUPS_MAX], 0);
    let mut add = |id| {
        if let Some(place) = groups.get_mut(count) {
            *place = id;
            count += 1;
        }
    };
    add(user.group);
    for line in read_file(c"/etc/group", &mut space).split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b':').skip(2);
        let (Some(id), Some(members)) = (fields.next(), fields.next()) else { continue };
        let is_member = members.split(|byte| *byte == b',').any(|member| member == user.name);
        if let Some(id) = number(id).filter(|id| is_member && *id != user.group) {
            add(id);
        }
    }
    sys::become_user(user.id, user.group, groups.get(..count).unwrap_or_default())
}
