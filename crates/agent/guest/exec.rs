//! A command: from what the host asks for to a running program.

use core::ffi::CStr;

use crate::frames::{fail, send};
use crate::protocol::{Exec, STARTED, STRINGS_MAX, pair, read_pair, step};
use crate::session::Session;
use crate::strings::{PATH_MAX, join, next};
use crate::sys::{self, EACCES, EINVAL, ENAMETOOLONG, ENOENT, Strings, TIOCSCTTY};
use crate::users::{self, FILE_MAX, User};

/// Where programs are looked for, unless the host says otherwise.
const PATH: &CStr = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Room for variables that are made here.
const MADE_MAX: usize = 5 * PATH_MAX;
/// Arguments and variables, those that are made here, and the null pointer.
const LIST_MAX: usize = STRINGS_MAX + 8;

/// What the host asks for.
struct Request<'a> {
    head: Exec,
    folder: &'a CStr,
    user: &'a CStr,
    /// Arguments, then variables.
    strings: &'a [u8],
}

impl<'a> Request<'a> {
    fn read(request: &'a [u8]) -> Option<Self> {
        let (head, mut strings) = request.split_first_chunk::<8>()?;
        let head = Exec::from_bytes(*head);
        let (folder, user) = (next(&mut strings)?, next(&mut strings)?);
        let count = usize::from(head.arguments) + usize::from(head.variables);
        let whole = strings.iter().filter(|byte| **byte == 0).count() == count;
        (whole && count <= STRINGS_MAX).then_some(Self { head, folder, user, strings })
    }

    fn arguments(&self) -> impl Iterator<Item = &'a CStr> {
        let mut strings = self.strings;
        (0..self.head.arguments).map_while(move |_| next(&mut strings))
    }

    fn variables(&self) -> impl Iterator<Item = &'a CStr> {
        let mut strings = self.strings;
        let count = usize::from(self.head.arguments) + usize::from(self.head.variables);
        (0..count).map_while(move |_| next(&mut strings)).skip(self.head.arguments.into())
    }

    fn variable(&self, name: &[u8]) -> Option<&'a CStr> {
        self.variables().find(|variable| {
            variable.to_bytes().strip_prefix(name).is_some_and(|rest| rest.first() == Some(&b'='))
        })
    }
}

/// The ends of a command's streams: those of the agent, those of the program.
struct Streams {
    ours: [i32; 3],
    theirs: [i32; 3],
}

impl Streams {
    fn new(head: Exec) -> Result<Self, (u32, i32)> {
        if head.rows > 0 {
            let [ours, theirs] = sys::terminal().map_err(|error| (step::TERMINAL, error))?;
            sys::set_window(ours, head.rows, head.columns);
            return Ok(Self { ours: [ours, ours, -1], theirs: [theirs; 3] });
        }
        let pipe = || sys::pipe().map_err(|error| (step::PROCESS, error));
        let [[input, a], [b, output], [c, error]] = [pipe()?, pipe()?, pipe()?];
        Ok(Self { ours: [a, b, c], theirs: [input, output, error] })
    }
}

/// Runs a command.
pub fn exec(fd: i32, request: &[u8]) -> ! {
    let request = Request::read(request).unwrap_or_else(|| fail(fd, step::REQUEST, EINVAL));
    let failed = |(step, error)| fail(fd, step, error);
    let streams = Streams::new(request.head).unwrap_or_else(failed);
    let mut space = [0; FILE_MAX];
    let passwd = users::read_file(c"/etc/passwd", &mut space);
    let user = users::find(passwd, request.user.to_bytes());
    let user = user.unwrap_or_else(|| fail(fd, step::USER, ENOENT));
    let started = sys::pipe().and_then(|report| Ok((report, sys::watch_children()?, sys::fork()?)));
    let ([heard, told], children, pid) = started.unwrap_or_else(|error| fail(fd, step::PROCESS, error));
    if pid == 0 {
        let (step, error) = become_program(&request, &user, &streams);
        // Our parent waits for it.
        let _ = sys::write(told, &pair(error as u32, step));
        sys::exit(127);
    }
    for end in streams.theirs {
        sys::close(end);
    }
    sys::close(told);
    let mut report = [0; 8];
    // A program that runs has closed the pipe without a word.
    if sys::read(heard, &mut report) == Ok(8) {
        let (error, step) = read_pair(report);
        fail(fd, step, error as i32);
    }
    sys::close(heard);
    send(fd, STARTED, &[]);
    Session::new(fd, pid, children, streams.ours, request.head.rows > 0).run()
}

/// In the new process. It comes back only when it has failed: the step, and the error.
fn become_program(request: &Request<'_>, user: &User<'_>, streams: &Streams) -> (u32, i32) {
    match prepare(request, user, streams) {
        Ok(()) => (step::PROGRAM, run(request, user)),
        Err(failed) => failed,
    }
}

fn prepare(request: &Request<'_>, user: &User<'_>, streams: &Streams) -> Result<(), (u32, i32)> {
    let process = |error| (step::PROCESS, error);
    sys::new_session().map_err(process)?;
    for (to, from) in streams.theirs.into_iter().enumerate() {
        sys::duplicate(from, to as i32).map_err(process)?;
    }
    if request.head.rows > 0 {
        sys::control(0, TIOCSCTTY, 0).map_err(|error| (step::TERMINAL, error))?;
    }
    if user.id != 0 || !request.user.is_empty() {
        users::become_user(user).map_err(|error| (step::USER, error))?;
    }
    let mut space = [0; PATH_MAX];
    let home = join(&mut space.as_mut_slice(), &[user.home]);
    if !request.folder.is_empty() {
        sys::enter(request.folder).map_err(|error| (step::FOLDER, error))?;
    } else if home.is_none_or(|home| sys::enter(home).is_err()) {
        // There is always this one.
        sys::enter(c"/").map_err(|error| (step::FOLDER, error))?;
    }
    sys::default_signals();
    Ok(())
}

/// Runs the program: the error if it cannot.
fn run(request: &Request<'_>, user: &User<'_>) -> i32 {
    let mut space = [0; MADE_MAX];
    let mut room = space.as_mut_slice();
    let shell: &[u8] = if user.shell.is_empty() { b"/bin/sh" } else { user.shell };
    let mut variables = Strings::<LIST_MAX>::new();
    request.variables().for_each(|variable| variables.push(variable));
    let made: [(&[u8], &[u8]); 4] =
        [(b"HOME", user.home), (b"USER", user.name), (b"LOGNAME", user.name), (b"SHELL", shell)];
    for (name, value) in made {
        if request.variable(name).is_none() {
            let Some(variable) = join(&mut room, &[name, b"=", value]) else { return ENAMETOOLONG };
            variables.push(variable);
        }
    }
    let path = request.variable(b"PATH").unwrap_or_else(|| {
        variables.push(PATH);
        PATH
    });
    let mut arguments = Strings::<LIST_MAX>::new();
    request.arguments().for_each(|argument| arguments.push(argument));
    let Some(program) = request.arguments().next() else {
        // A login shell knows itself by a hyphen before its name.
        let name = shell.rsplit(|byte| *byte == b'/').next().unwrap_or(shell);
        let (name, shell) = (join(&mut room, &[b"-", name]), join(&mut room, &[shell]));
        let (Some(name), Some(shell)) = (name, shell) else { return ENAMETOOLONG };
        arguments.push(name);
        return sys::run(shell, &arguments, &variables);
    };
    if program.to_bytes().contains(&b'/') {
        return sys::run(program, &arguments, &variables);
    }
    let mut error = ENOENT;
    for folder in path.to_bytes().get(5..).unwrap_or_default().split(|byte| *byte == b':') {
        let mut space = [0; PATH_MAX];
        let folder = if folder.is_empty() { b"." } else { folder };
        let Some(path) = join(&mut space.as_mut_slice(), &[folder, b"/", program.to_bytes()]) else {
            continue;
        };
        // One that is there and may not be run counts only if there is no other.
        match sys::run(path, &arguments, &variables) {
            ENOENT => {}
            found => error = if found == EACCES || error == ENOENT { found } else { error },
        }
    }
    error
}
