//! The default guest's making, with a package archive of our own behind `apt-cache` and `apt-get`: its kernel is one of
//! the tests' small ones, so that the way from `umbra run` without arguments to a running guest takes no time.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::process::Running;
use common::tiny::Code;
use common::{Home, accel, one_sentence, text, wait_until};
use rustix::process::Signal;

const KERNEL: &str = "linux-image-9.9.0-1-cloud-amd64";
/// Answers as apt-cache(8) does.
const APT_CACHE: &str = "#!/bin/sh
[ \"$1 $2\" = 'depends linux-image-cloud-amd64' ] || exit 100
[ ! -f \"$ARCHIVE/no-lists\" ] || { echo 'N: Unable to locate package' >&2; echo 'E: No packages found' >&2; exit 100; }
echo linux-image-cloud-amd64
echo '  Depends: linux-image-9.9.0-1-cloud-amd64'
";
/// Answers as apt-get(8) does; `error` in the archive is what it fails with, `slow` makes it take its time.
const APT_GET: &str = "#!/bin/sh
uris=
for word; do
  case $word in
    download) ;;
    --print-uris) uris=yes ;;
    -*|*=*) ;;
    *) packages=\"$packages $word\" ;;
  esac
done
for package in $packages; do
  for file in \"$ARCHIVE/${package}_\"*.deb; do
    name=${file##*/}
    if [ $uris ]; then
      size=$(wc -c < \"$file\")
      echo \"'http://archive.invalid/$name' $name $size SHA256:00\"
    else
      echo \"$package\" >> \"$ARCHIVE/downloaded\"
      [ ! -f \"$ARCHIVE/error\" ] || { cat \"$ARCHIVE/error\" >&2; exit 100; }
      : > \"$name\"
      [ ! -f \"$ARCHIVE/slow\" ] || sleep \"$(cat \"$ARCHIVE/slow\")\"
      cat \"$file\" > \"$name\"
    fi
  done
done
";

/// A home, and an archive of packages.
struct Debian {
    home: Home,
    archive: PathBuf,
    /// The only folder that programs are found in.
    programs: PathBuf,
}

impl Debian {
    fn new() -> Self {
        let home = Home::new();
        let (archive, programs) = (home.path("archive"), home.path("programs"));
        fs::create_dir(&archive).unwrap();
        fs::create_dir(&programs).unwrap();
        let debian = Self { home, archive, programs };
        debian.program("apt-cache", APT_CACHE);
        debian.program("apt-get", APT_GET);
        for name in ["sh", "cat", "wc", "sleep", "dpkg-deb", "tar"] {
            let places = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(name));
            let place = places.iter().find(|place| place.exists()).unwrap();
            symlink(place, debian.programs.join(name)).unwrap();
        }
        let kernel = Code::new().say("the default guest\r\n").power_off().kernel();
        let module = [b"\x7fELF".as_slice(), &[0; 1000]].concat();
        let folder = "lib/modules/9.9.0-1-cloud-amd64/kernel/drivers/misc/pvpanic";
        debian.package(
            KERNEL,
            &[("boot/vmlinuz-9.9.0-1-cloud-amd64", &kernel), (&format!("{folder}/pvpanic.ko"), &module)],
        );
        debian.package("busybox-static", &[("bin/busybox", &[7; 3000])]);
        debian
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.programs.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn package(&self, name: &str, files: &[(&str, &[u8])]) {
        let tree = self.home.path("tree");
        let control = tree.join("DEBIAN/control");
        for (path, bytes) in files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        fs::create_dir_all(control.parent().unwrap()).unwrap();
        let text = format!(
            "Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody <a@b.invalid>\nDescription: for tests\n"
        );
        fs::write(control, text).unwrap();
        let file = self.archive.join(format!("{name}_1%3a1-1_amd64.deb"));
        let built = Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zgzip", "-b"])
            .arg(&tree)
            .arg(file)
            .output()
            .unwrap();
        assert!(built.status.success(), "{built:?}");
        fs::remove_dir_all(tree).unwrap();
    }

    fn set(&self, name: &str, text: &str) {
        fs::write(self.archive.join(name), text).unwrap();
    }

    fn start(&self, more: &[&str]) -> Running {
        let accel = accel();
        let mut command = self.home.umbra(&[&["run", "--accel", &accel, "--memory", "32M"], more].concat());
        command.env("PATH", &self.programs).env("ARCHIVE", &self.archive);
        Running::start(command)
    }

    fn run(&self, more: &[&str]) -> Output {
        self.start(more).end()
    }

    fn downloads(&self) -> usize {
        fs::read_to_string(self.archive.join("downloaded")).unwrap_or_default().lines().count()
    }

    /// Names in the guest's cache folder, but for the lock.
    fn cached(&self) -> Vec<String> {
        let entries = fs::read_dir(self.home.cache().join("umbra/guest")).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "lock").collect()
    }

    /// It fails with one sentence that holds `words`, and leaves nothing.
    fn refuse(&self, words: &[&str]) {
        let output = self.run(&["--quiet"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        one_sentence(&said);
        for word in words {
            assert!(said.contains(word), "{said:?} lacks {word:?}");
        }
        assert_eq!(self.cached(), [""; 0], "nothing half-made stays");
    }
}

fn boots(output: &Output) {
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(0), "the default guest\r\n"),
        "{output:?}"
    );
}

#[test]
fn it_is_made_once_and_told_while_it_is_made() {
    let debian = Debian::new();
    let first = debian.run(&[]);
    boots(&first);
    let said = text(&first.stderr);
    for words in
        ["Debian's linux-image-9.9.0-1-cloud-amd64 and busybox-static", "(100 %)", "unpacking", "engine"]
    {
        assert!(said.contains(words), "{said:?} lacks {words:?}");
    }
    assert!(!said.contains(['\r', '\x1b']), "a log gets plain lines: {said:?}");
    assert_eq!(debian.downloads(), 2);
    let folder = "linux-image-9.9.0-1-cloud-amd64_1%3a1-1_busybox-static_1%3a1-1";
    assert_eq!(debian.cached(), [folder]);
    // From then on neither apt nor a network is needed.
    fs::remove_file(debian.programs.join("apt-get")).unwrap();
    fs::remove_file(debian.programs.join("dpkg-deb")).unwrap();
    let second = debian.run(&["--quiet"]);
    boots(&second);
    assert_eq!(text(&second.stderr), "");
    // What another version of Umbra made of the packages is of no use, the packages are.
    let inside = debian.home.cache().join("umbra/guest").join(folder);
    let names = || fs::read_dir(&inside).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let initrd = names().find(|name| name.starts_with("initrd-")).unwrap();
    fs::rename(inside.join(&initrd), inside.join("initrd-of-another-version")).unwrap();
    boots(&debian.run(&["--quiet"]));
    assert!(names().any(|name| name == initrd));
}

#[test]
fn quiet_says_nothing_while_it_is_made() {
    let debian = Debian::new();
    let output = debian.run(&["--quiet"]);
    boots(&output);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_initrd_is_an_archive_with_busybox_and_modules() {
    let debian = Debian::new();
    boots(&debian.run(&["--quiet"]));
    let folder = debian.home.cache().join("umbra/guest").join(&debian.cached()[0]);
    let initrd = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let initrd = initrd.into_iter().find(|p| p.to_string_lossy().contains("initrd-")).unwrap();
    let bytes = fs::read(initrd).unwrap();
    assert!(bytes.starts_with(b"070701"));
    let has = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    for name in [
        b"\0init\0".as_slice(),
        b"bin/busybox\0",
        b"lib/modules/pvpanic.ko\0",
        b"dev/console\0",
        b"TRAILER!!!",
    ] {
        // The name of the first entry follows its header's last digit, not a zero byte.
        assert!(has(name.strip_prefix(b"\0").unwrap_or(name)), "{}", text(name));
    }
    assert!(!has(b"evdev.ko"), "what the kernel has built in is not looked for");
}

#[test]
fn nothing_is_fetched_for_a_machine_that_cannot_be() {
    let debian = Debian::new();
    let output = debian.run(&["--quiet", "--cpus", "0"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    one_sentence(&text(&output.stderr));
    assert_eq!((debian.downloads(), debian.cached().len()), (0, 0));
}

#[test]
fn a_host_without_apt_is_told_which_files_to_give() {
    let debian = Debian::new();
    fs::remove_file(debian.programs.join("apt-cache")).unwrap();
    debian.refuse(&["apt-cache", "--kernel", "--initrd"]);
}

#[test]
fn a_host_without_dpkg_is_told_which_files_to_give() {
    let debian = Debian::new();
    fs::remove_file(debian.programs.join("dpkg-deb")).unwrap();
    debian.refuse(&["dpkg-deb", "--kernel", "--initrd"]);
}

#[test]
fn missing_package_lists_are_told_with_what_to_run() {
    let debian = Debian::new();
    debian.set("no-lists", "");
    debian.refuse(&["`sudo apt-get update`", "No packages found", "--kernel"]);
    fs::remove_file(debian.archive.join("no-lists")).unwrap();
    boots(&debian.run(&[]));
}

#[test]
fn failed_downloads_are_told_with_what_to_do() {
    let debian = Debian::new();
    debian.set("error", "E: Failed to fetch http://archive.invalid/x.deb  404  Not Found\n");
    debian.refuse(&["older than the packages", "`sudo apt-get update`"]);
    debian.set(
        "error",
        "E: Failed to fetch http://archive.invalid/x.deb  Temporary failure resolving 'archive.invalid'\n",
    );
    debian.refuse(&["check the network"]);
    debian.set("error", "E: write (28: No space left on device)\n");
    debian.refuse(&["free some space", "XDG_CACHE_HOME"]);
    debian.set("error", "E: Something that nobody thought of\n");
    debian.refuse(&["Something that nobody thought of"]);
}

#[test]
fn packages_that_are_damaged_or_lack_something_are_told() {
    let debian = Debian::new();
    debian.package("busybox-static", &[("bin/other", &[7; 3000])]);
    debian.refuse(&["no busybox", "busybox-static"]);
    let busybox = debian.archive.join("busybox-static_1%3a1-1_amd64.deb");
    fs::write(busybox, b"!<arch>\nno package").unwrap();
    debian.refuse(&["dpkg-deb cannot unpack"]);
    debian.package(KERNEL, &[("boot/config", b"no kernel")]);
    debian.refuse(&["no vmlinuz", KERNEL]);
}

#[test]
fn a_cache_that_cannot_be_written_is_told() {
    let debian = Debian::new();
    fs::create_dir_all(debian.home.cache()).unwrap();
    fs::write(debian.home.cache().join("umbra"), b"a file in the way").unwrap();
    debian.refuse(&["cannot make the cache folder"]);
}

#[test]
fn an_interrupted_making_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let debian = Debian::new();
        debian.set("slow", "30");
        let making = debian.start(&["--quiet"]);
        wait_until("the download", || debian.downloads() > 0);
        making.signal(signal);
        let output = making.end();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        one_sentence(&text(&output.stderr));
        assert!(text(&output.stderr).contains("interrupted"));
        assert_eq!(debian.cached(), [""; 0]);
        // The next one begins anew.
        fs::remove_file(debian.archive.join("slow")).unwrap();
        boots(&debian.run(&["--quiet"]));
    }
}

#[test]
fn what_a_killed_making_left_is_removed() {
    let debian = Debian::new();
    debian.set("slow", "2");
    let mut making = debian.start(&["--quiet"]);
    wait_until("the download", || debian.downloads() > 0);
    making.signal(Signal::KILL);
    making.wait();
    assert!(debian.cached().iter().any(|name| name.starts_with(".making-")));
    fs::remove_file(debian.archive.join("slow")).unwrap();
    boots(&debian.run(&["--quiet"]));
    assert_eq!(debian.cached().len(), 1, "{:?}", debian.cached());
}

#[test]
fn a_cached_guest_that_lost_a_file_is_made_again() {
    let debian = Debian::new();
    boots(&debian.run(&["--quiet"]));
    let folder = debian.home.cache().join("umbra/guest").join(&debian.cached()[0]);
    fs::remove_file(folder.join("busybox")).unwrap();
    boots(&debian.run(&["--quiet"]));
    assert!(folder.join("busybox").exists());
    assert_eq!(debian.downloads(), 4);
}

#[test]
fn two_at_once_make_it_once() {
    let debian = Debian::new();
    debian.set("slow", "0.3");
    let both = [debian.start(&[]), debian.start(&[])];
    let outputs = both.map(Running::end);
    outputs.iter().for_each(boots);
    assert_eq!(debian.downloads(), 2, "two packages, once");
    assert!(outputs.iter().any(|output| text(&output.stderr).contains("waiting for it")));
}

#[test]
fn debians_own_packages_make_a_guest_that_boots_and_hears_its_power_button() {
    let listed = Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]).output();
    if !listed.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this host has no package lists of Debian");
        return;
    }
    let home = Home::new();
    home.succeed(&["image", "create", "-q", "-f", "qcow2", "disk.qcow2", "64M"]);
    let devices = ["--disk", "disk.qcow2,serial=its-own", "--net", "user"];
    let accel = accel();
    let words = [&["run", "--accel", &accel, "--name", "web"][..], &devices].concat();
    let mut vm = Running::start(home.umbra(&words));
    // Typed before anybody listens; nothing of it is lost.
    vm.send(b"echo from the shell: $((6 * 7)) $(uname -r)\n");
    vm.says("processor, ");
    vm.says("from the shell: 42 ");
    let shown = vm.written();
    assert!(shown.contains("under KVM, 1 processor, "), "{shown}");
    assert!(shown.contains("-cloud-amd64"), "{shown}");
    // The disk is there when the shell is.
    vm.send(b"cat /sys/block/vda/serial; mke2fs /dev/vda > /dev/null && mount /dev/vda /tmp && df -k /tmp | tail -n 1\n");
    vm.says("\nits-own");
    vm.says("/dev/vda ");
    // Its network comes a moment later.
    vm.send(b"until grep 10.0.2.3 /etc/resolv.conf; do sleep 0.1; done 2> /dev/null; ip -4 -o addr show eth0; ip route\n");
    vm.says("inet 10.0.2.15/24 ");
    vm.says("default via 10.0.2.2 dev eth0");
    // The power button has somebody to tell when its daemon runs.
    vm.send(b"until pidof acpid; do sleep 0.1; done > /dev/null; cat /proc/modules; echo all is there\n");
    vm.says("\nall is there");
    assert!(vm.written().contains("pvpanic_mmio "), "{}", vm.written());
    home.succeed(&["stop", "web"]);
    assert_eq!(vm.end().status.code(), Some(0));
    home.succeed(&["image", "check", "disk.qcow2"]);
    home.nothing_left();
}
