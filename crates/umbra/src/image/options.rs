//! The commands and their options: one table gives the parser, the help and the tests. Letters, names and the possible
//! abbreviations are those of `qemu-img` 10.0 as Debian ships it.

use super::failure::Outcome;
use super::getopt::{Opt, Parsed};
use super::{
    Tool, amend, bench, bitmap, check, commit, compare, convert, create, dd, info, map, measure, mount,
    rebase, resize, serve, snapshot, tree,
};

/// A command.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// What follows its name on the command line.
    pub usage: &'static str,
    /// Its options.
    pub options: &'static [Opt],
    /// More to know, below the options.
    pub notes: &'static str,
    /// Does it.
    pub run: fn(&Tool, &Parsed) -> Outcome,
}

const HELP: Opt = Opt::flag('h', "help", "print this help");
const QUIET: Opt = Opt::flag('q', "quiet", "print nothing but errors");
const PROGRESS: Opt = Opt::flag('p', "progress", "show how far it is; on a terminal it does so by itself");
const FORMAT: Opt = Opt::value('f', "format", "FMT", "the image's format; found out where it is not given");
const IMAGE_OPTS: Opt = Opt::flag(' ', "image-opts", "names are options: driver=qcow2,file.filename=NAME");
const OBJECT: Opt =
    Opt::value(' ', "object", "OBJDEF", "a secret: secret,id=ID and data=, file=, fd= or prompt=on");
const OUTPUT: Opt = Opt::value(' ', "output", "human|json", "how to print");
const SHARE: Opt = Opt::flag('U', "force-share", "open it also where another process writes to it");
const CACHE: Opt =
    Opt::value('t', "cache", "CACHE", "cache mode: none, directsync, writeback, writethrough, unsafe");
const SOURCE_CACHE: Opt = Opt::value('T', "cache", "CACHE", "cache mode: none, directsync, writeback, ...");
const BACKING_FORMAT: Opt = Opt::value('F', "backing-format", "FMT", "format of the backing file");
const RATE: Opt = Opt::value('r', "rate", "RATE", "at most so many bytes a second");
const DRY_RUN: Opt = Opt::flag(' ', "dry-run", "say what would be done, and do nothing").exact();
const NO_IMPLICIT: Opt =
    Opt::flag(' ', "no-implicit-backing", "open no file that only an image names").exact();

const CREATE: &[Opt] = &[
    HELP,
    QUIET,
    OBJECT,
    FORMAT,
    Opt::value('b', "backing", "NAME", "the image that the new one is an overlay of"),
    BACKING_FORMAT,
    Opt::flag('u', "backing-unsafe", "do not open the backing file"),
    Opt::value('o', "options", "OPTIONS", "options of the format; `-o help` lists them"),
    DRY_RUN,
];

const INFO: &[Opt] = &[
    HELP,
    FORMAT,
    OUTPUT,
    Opt::flag('b', "backing-chain", "the images below it too"),
    OBJECT,
    IMAGE_OPTS,
    SHARE,
    NO_IMPLICIT,
];

const CHECK: &[Opt] = &[
    HELP,
    QUIET,
    FORMAT,
    Opt::value('r', "repair", "leaks|all", "mend: free what nothing uses, or mend everything"),
    OUTPUT,
    SOURCE_CACHE,
    OBJECT,
    IMAGE_OPTS,
    SHARE,
    DRY_RUN,
    NO_IMPLICIT,
];

const CONVERT: &[Opt] = &[
    HELP,
    Opt::flag(' ', "source-image-opts", "the same as --image-opts").keyed("image-opts"),
    IMAGE_OPTS,
    OBJECT,
    Opt::value('f', "source-format", "FMT", "format of the sources").keyed("format"),
    Opt::value('T', "source-cache", "CACHE", "cache mode of the sources"),
    Opt::value('O', "output-format", "FMT", "format of the target; raw where it is not given"),
    Opt::value('O', "target-format", "FMT", "").keyed("output-format").exact(),
    Opt::value('B', "backing", "NAME", "make the target an overlay of this image, which has the rest"),
    BACKING_FORMAT,
    Opt::value(
        'l',
        "snapshot",
        "SNAPSHOT",
        "an internal snapshot of the source: ID, name, or snapshot.id=,snapshot.name=",
    ),
    Opt::value('l', "source-snapshot", "SNAPSHOT", "").keyed("snapshot").exact(),
    Opt::value('o', "options", "OPTIONS", "options of the target's format; `-o help` lists them"),
    Opt::value('o', "target-options", "OPTIONS", "").keyed("options").exact(),
    Opt::value('t', "output-cache", "CACHE", "cache mode of the target").keyed("target-cache"),
    Opt::value('t', "target-cache", "CACHE", "").exact(),
    Opt::flag('c', "compress", "compress the target").exact(),
    Opt::flag('n', "no-create", "the target exists; write into it").exact(),
    Opt::flag(' ', "target-image-opts", "the target's name is options; needs -n"),
    Opt::flag(' ', "target-is-zero", "the target reads as zeroes already; needs -n"),
    Opt::value(
        'S',
        "sparse-size",
        "SIZE",
        "runs of so many zeroes become holes; 4k where it is not given, 0 for none",
    ),
    Opt::flag(' ', "bitmaps", "copy persistent bitmaps too"),
    Opt::flag(' ', "skip-broken-bitmaps", "leave out bitmaps that are inconsistent"),
    Opt::flag('C', "copy-range-offloading", "let the host copy, where it can"),
    Opt::value('m', "parallel", "N", "so many requests at once, 1 to 16"),
    Opt::flag('W', "oob-writes", "write out of order; compressed targets are written so by themselves"),
    RATE,
    Opt::flag(' ', "salvage", "read what cannot be read as zeroes"),
    QUIET,
    PROGRESS.exact(),
    SHARE,
    DRY_RUN,
    NO_IMPLICIT,
];

const SNAPSHOT: &[Opt] = &[
    HELP,
    QUIET,
    FORMAT,
    IMAGE_OPTS,
    SHARE,
    OBJECT,
    Opt::flag('l', "list", "list the snapshots; done where nothing else is asked"),
    Opt::value('c', "create", "NAME", "keep the disk as it is now"),
    Opt::value('a', "apply", "SNAPSHOT", "make the disk what it was"),
    Opt::value('d', "delete", "SNAPSHOT", "forget it"),
    OUTPUT.exact(),
    DRY_RUN,
];

const RESIZE: &[Opt] = &[
    HELP,
    QUIET,
    FORMAT,
    IMAGE_OPTS,
    Opt::flag(' ', "shrink", "allow the disk to become smaller; its end is lost"),
    Opt::value(' ', "preallocation", "MODE", "allocate what is added: off, metadata, falloc or full"),
    OBJECT,
    DRY_RUN,
];

const MAP: &[Opt] = &[
    HELP,
    FORMAT,
    OUTPUT,
    IMAGE_OPTS,
    OBJECT,
    SHARE,
    Opt::value('s', "start-offset", "OFFSET", "begin there"),
    Opt::value('l', "max-length", "LENGTH", "stop behind so many bytes"),
    NO_IMPLICIT,
];

const MEASURE: &[Opt] = &[
    HELP,
    Opt::value('O', "target-format", "FMT", "the format to measure for; raw where it is not given"),
    FORMAT,
    Opt::value('o', "options", "OPTIONS", "options of that format"),
    IMAGE_OPTS,
    Opt::value('l', "snapshot", "SNAPSHOT", "measure this snapshot"),
    OBJECT,
    OUTPUT,
    Opt::value('s', "size", "SIZE", "measure for an empty disk of this size"),
    SHARE,
];

const COMPARE: &[Opt] = &[
    HELP,
    Opt::value('f', "a-format", "FMT", "format of the first image"),
    Opt::value('f', "left-format", "FMT", "").keyed("a-format"),
    Opt::value('F', "b-format", "FMT", "format of the second"),
    Opt::value('F', "right-format", "FMT", "").keyed("b-format"),
    IMAGE_OPTS,
    Opt::flag('s', "strict", "sizes and allocation have to be equal too"),
    SOURCE_CACHE,
    SHARE,
    OBJECT,
    QUIET,
    PROGRESS,
    NO_IMPLICIT,
];

const COMMIT: &[Opt] = &[
    HELP,
    QUIET,
    PROGRESS,
    FORMAT,
    IMAGE_OPTS,
    CACHE,
    Opt::flag('d', "drop", "leave the image as it is, without emptying it"),
    Opt::value('b', "base", "NAME", "commit into this image of the chain; implies -d"),
    RATE,
    OBJECT,
    DRY_RUN,
];

const REBASE: &[Opt] = &[
    HELP,
    QUIET,
    PROGRESS,
    FORMAT,
    IMAGE_OPTS,
    CACHE,
    Opt::value('b', "backing", "NAME", "the new backing file; \"\" for none"),
    BACKING_FORMAT,
    Opt::value('T', "backing-cache", "CACHE", "cache mode of the backing files"),
    Opt::flag('u', "backing-unsafe", "change the name only; the data below has to be the same"),
    Opt::flag('c', "compress", "compress what is copied"),
    SHARE,
    OBJECT,
    DRY_RUN,
];

const DD: &[Opt] = &[
    HELP,
    FORMAT,
    IMAGE_OPTS,
    Opt::value('O', "output-format", "FMT", "format of the output; raw where it is not given"),
    SHARE,
    OBJECT,
];

const AMEND: &[Opt] = &[
    HELP,
    QUIET,
    PROGRESS,
    FORMAT,
    IMAGE_OPTS,
    Opt::value('o', "options", "OPTIONS", "what to change; `-o help` lists what can be"),
    CACHE,
    Opt::flag(' ', "force", "also what may lose access to the data: the last key"),
    OBJECT,
    DRY_RUN,
];

const BITMAP: &[Opt] = &[
    HELP,
    FORMAT,
    IMAGE_OPTS,
    Opt::flag(' ', "add", "make it, recording"),
    Opt::value('g', "granularity", "SIZE", "bytes of the disk for one of its bits, for --add"),
    Opt::flag(' ', "remove", "remove it"),
    Opt::flag(' ', "clear", "make it clean"),
    Opt::flag(' ', "enable", "let it record"),
    Opt::flag(' ', "disable", "stop it recording"),
    Opt::value(' ', "merge", "SOURCE", "what bitmap SOURCE has becomes dirty in it too"),
    Opt::value('b', "source-file", "NAME", "the image that SOURCE is in"),
    Opt::value('F', "source-format", "FMT", "that image's format"),
    OBJECT,
];

const BENCH: &[Opt] = &[
    HELP,
    QUIET,
    FORMAT,
    IMAGE_OPTS,
    CACHE,
    Opt::value('c', "count", "COUNT", "so many requests; 75000 where it is not given"),
    Opt::value('s', "buffer-size", "SIZE", "bytes of a request; 4096 where it is not given"),
    Opt::value('d', "depth", "DEPTH", "so many requests at once; 64 where it is not given"),
    Opt::value('o', "offset", "OFFSET", "where the first begins"),
    Opt::value('S', "step-size", "SIZE", "from where one begins to where the next does; a request's size"),
    Opt::value('i', "aio", "AIO", "how: io_uring, native or threads"),
    Opt::flag('n', "native", "the same as -i native"),
    Opt::flag('w', "write", "write instead of reading"),
    Opt::value(' ', "pattern", "BYTE", "write this byte; 0 where it is not given"),
    Opt::value(' ', "flush-interval", "COUNT", "flush after so many writes"),
    Opt::flag(' ', "no-drain", "do not wait for writes before a flush, nor for it"),
    SHARE,
    OBJECT,
];

const SERVE: &[Opt] = &[
    HELP,
    QUIET,
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    Opt::value('k', "socket", "PATH", "listen on this Unix socket"),
    Opt::value(
        'b',
        "bind",
        "ADDRESS",
        "listen on this address of the host; 127.0.0.1 where no socket is given",
    ),
    Opt::value('p', "port", "PORT", "listen on this TCP port; 10809 where it is not given, 0 for a free one"),
    Opt::value('x', "export-name", "NAME", "the name that clients ask for; empty where it is not given"),
    Opt::value('B', "bitmap", "NAME", "let clients see this dirty bitmap, as qemu:dirty-bitmap:NAME"),
    Opt::value('D', "description", "TEXT", "what clients are told of the exports"),
    Opt::flag('r', "read-only", "let nobody write"),
    Opt::flag('s', "snapshot", "keep what is written in a temporary overlay, which is lost"),
    Opt::flag('t', "persistent", "go on when the last client has left"),
    Opt::value('e', "shared", "N", "serve so many clients at once; 16 where it is not given, 0 for 1000"),
    Opt::value(
        ' ',
        "tls-creds",
        "DIR|ID",
        "serve only by TLS, with the certificates of this folder or object",
    ),
    Opt::flag(' ', "tls-any-client", "clients need no certificate"),
    Opt::value(' ', "cache", "CACHE", "cache mode: none, directsync, writeback, writethrough, unsafe"),
    Opt::value(' ', "discard", "MODE", "what becomes of discards: unmap or ignore"),
    Opt::value(' ', "detect-zeroes", "MODE", "what becomes of writes of zeroes: off, on or unmap"),
    OUTPUT,
    Opt::flag(' ', "json", "print where it listens as JSON; the same as --output=json"),
    SHARE,
    NO_IMPLICIT,
];

const MOUNT: &[Opt] = &[
    HELP,
    QUIET,
    OBJECT,
    FORMAT,
    IMAGE_OPTS,
    CACHE,
    Opt::flag('r', "read-only", "nothing can be written"),
    Opt::flag(' ', "allow-other", "other users may use the file too"),
    SHARE,
    NO_IMPLICIT,
];

const TREE: &[Opt] = &[HELP, FORMAT, OUTPUT, IMAGE_OPTS, OBJECT, SHARE];

/// Every command.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "amend",
        about: "change options of an image",
        usage: "-o OPTIONS [-f FMT | --image-opts] [-p] [-q] FILE",
        options: AMEND,
        notes: "",
        run: amend::run,
    },
    Command {
        name: "bench",
        about: "measure how fast requests to an image are",
        usage: "[-f FMT | --image-opts] [-t CACHE] [-c COUNT] [-d DEPTH] [-o OFFSET] [-s SIZE] [-S SIZE] [-i AIO] [-n]\n    [-w [--pattern BYTE] [--flush-interval COUNT [--no-drain]]] FILE",
        options: BENCH,
        notes: "Writing changes the image. Without -t none, the host's page cache is what is measured.",
        run: bench::run,
    },
    Command {
        name: "bitmap",
        about: "change a persistent dirty bitmap of an image",
        usage: "(--add [-g SIZE] | --remove | --clear | --enable | --disable | --merge SOURCE [-b FILE [-F FMT]])... FILE BITMAP",
        options: BITMAP,
        notes: "The changes are made in the order of the options.",
        run: bitmap::run,
    },
    Command {
        name: "check",
        about: "look whether an image is in order, and mend it",
        usage: "[-f FMT | --image-opts] [-r leaks|all] [--output human|json] FILE",
        options: CHECK,
        notes: "Exit codes: 0 in order (now), 1 not looked at everything, 2 corrupt, 3 space is lost and nothing worse,\n63 the format has nothing to check.",
        run: check::run,
    },
    Command {
        name: "commit",
        about: "write what an overlay has into the image below",
        usage: "[-f FMT | --image-opts] [-b BASE] [-d] [-p] [-q] FILE",
        options: COMMIT,
        notes: "",
        run: commit::run,
    },
    Command {
        name: "compare",
        about: "look whether two images have the same content",
        usage: "[-f FMT] [-F FMT] [-s] [-p] [-q] FILE1 FILE2",
        options: COMPARE,
        notes: "Exit codes: 0 equal, 1 not equal, 2 an image cannot be opened, 3 its allocation and 4 its data cannot be read.",
        run: compare::run,
    },
    Command {
        name: "convert",
        about: "copy an image, to another format perhaps",
        usage: "[-f FMT] [-O FMT] [-o OPTIONS] [-c] [-l SNAPSHOT] [-B BACKING -F FMT] [-n] FILE... TARGET",
        options: CONVERT,
        notes: "Several sources are joined. When it is stopped (Ctrl-C), a target that it has made is removed.",
        run: convert::run,
    },
    Command {
        name: "create",
        about: "make an image",
        usage: "[-f FMT] [-o OPTIONS] [-b BACKING -F FMT] [-u] FILE [SIZE]",
        options: CREATE,
        notes: "An overlay is as large as its backing file where SIZE is not given.",
        run: create::run,
    },
    Command {
        name: "dd",
        about: "copy blocks of an image",
        usage: "[-f FMT] [-O FMT] [bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=FILE of=FILE",
        options: DD,
        notes: "",
        run: dd::run,
    },
    Command {
        name: "info",
        about: "tell what an image is",
        usage: "[-f FMT | --image-opts] [-b] [--output human|json] FILE",
        options: INFO,
        notes: "",
        run: info::run,
    },
    Command {
        name: "map",
        about: "tell where an image's data is",
        usage: "[-f FMT | --image-opts] [-s OFFSET] [-l LENGTH] [--output human|json] FILE",
        options: MAP,
        notes: "",
        run: map::run,
    },
    Command {
        name: "measure",
        about: "tell how large an image would be",
        usage: "[-O FMT] [-o OPTIONS] [--output human|json] (-s SIZE | [-f FMT] [-l SNAPSHOT] FILE)",
        options: MEASURE,
        notes: "",
        run: measure::run,
    },
    Command {
        name: "mount",
        about: "show a disk as a file, by FUSE, until it is interrupted",
        usage: "[-f FMT | --image-opts] [-r] [-t CACHE] [--allow-other] FILE MOUNTPOINT",
        options: MOUNT,
        notes: "The mount point is a file, which is made where it is missing. Ctrl-C unmounts, flushes and closes the image.\n\
                `losetup --find --show --partscan MOUNTPOINT` makes a block device of it.",
        run: mount::run,
    },
    Command {
        name: "rebase",
        about: "change the backing file of an overlay, and keep its content",
        usage: "[-f FMT] -b BACKING [-F FMT] [-u] [-c] [-p] FILE",
        options: REBASE,
        notes: "",
        run: rebase::run,
    },
    Command {
        name: "resize",
        about: "change a disk's size",
        usage: "[-f FMT | --image-opts] [--shrink] [--preallocation MODE] FILE [+|-]SIZE",
        options: RESIZE,
        notes: "",
        run: resize::run,
    },
    Command {
        name: "serve",
        about: "serve images to clients of the network block device protocol",
        usage: "[-f FMT] [-k SOCKET] [-b ADDRESS] [-p PORT] [-r | -s] [-t] [--tls-creds DIR] (FILE | NAME=FILE...)",
        options: SERVE,
        notes: "It ends with its last client, or with -t when it is stopped (Ctrl-C): what was written is made durable then.\nA folder of certificates has ca-cert.pem, server-cert.pem and server-key.pem.",
        run: serve::run,
    },
    Command {
        name: "snapshot",
        about: "list, make, apply and delete internal snapshots",
        usage: "[-f FMT | --image-opts] [-l | -c NAME | -a SNAPSHOT | -d SNAPSHOT] FILE",
        options: SNAPSHOT,
        notes: "",
        run: snapshot::run,
    },
    Command {
        name: "tree",
        about: "show a chain of images and their snapshots as a tree",
        usage: "[-f FMT | --image-opts] [--output human|json] FILE",
        options: TREE,
        notes: "",
        run: tree::run,
    },
];

/// The command of that name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

impl Command {
    /// Its help, for a program called `program`.
    pub fn help(&self, program: &str) -> String {
        let about = self.about;
        let (first, rest) = about.split_at(1);
        let mut text = format!(
            "{}{rest}.\n\nUsage: {program} {} {}\n\nOptions:\n",
            first.to_uppercase(),
            self.name,
            self.usage
        );
        for option in self.options.iter().filter(|option| !option.help.is_empty()) {
            let mut left = match option.short {
                Some(letter) => format!("  -{letter}, --{}", option.long),
                None => format!("      --{}", option.long),
            };
            if let Some(value) = option.value {
                left.push(' ');
                left.push_str(value);
            }
            text.push_str(&match left.len() < 32 {
                true => format!("{left:32}{}\n", option.help),
                false => format!("{left}\n{:32}{}\n", "", option.help),
            });
        }
        if !self.notes.is_empty() {
            text.push_str(&format!("\n{}\n", self.notes));
        }
        text
    }
}

/// The help of all, for a program called `program`; `formats` are those that there are.
pub fn overview(program: &str, formats: &[&str]) -> String {
    let mut text = format!(
        "Work on disk images.\n\nUsage: {program} [--help | --version] COMMAND [OPTIONS]\n\nCommands:\n"
    );
    for command in COMMANDS {
        text.push_str(&format!("  {:10}{}\n", command.name, command.about));
    }
    if program != super::QEMU_NAME {
        text.push_str("\nImages that `umbra run NAME` boots:\n");
        for (name, about) in [
            ("build", "build one from a recipe"),
            ("ls", "list those that were built"),
            ("rm", "remove some"),
        ] {
            text.push_str(&format!("  {name:10}{about}\n"));
        }
    }
    text.push_str(&format!("\n`{program} COMMAND --help` tells a command's options.\n\n"));
    text.push_str(&format!("Supported formats: {}\n", formats.join(" ")));
    text
}
