//! The two eBPF objects: loaded over the pinned maps, every program verified before anything is attached.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{Map, MapData, ProgramArray},
    programs::{
        CgroupSockopt, Program, ProgramError, ProgramFd, SchedClassifier, TestRun as _,
        TestRunOptions, Xdp,
    },
};
use fsm_common::maps::{MAPS, name};

use crate::maps::{PinError, check_pin};

static XDP_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fsm-xdp.o"));
static TC_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fsm-tc.o"));

/// Why the programs cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A pin is in the way.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Folder of the pins.
    #[error("{path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Maps cannot be made, or an object is broken.
    #[error("the eBPF object {object} cannot be loaded: {source}")]
    Object {
        /// Which one.
        object: &'static str,
        /// Why.
        source: Box<EbpfError>,
    },
    /// The verifier, or the kernel's features.
    #[error("the eBPF program {program} is refused by this kernel: {source}")]
    Program {
        /// Which one.
        program: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
}

/// How many entries the tables take.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Flows (`conntrack.max_flows`); a flow has two entries.
    pub flows: u32,
    /// Half-open and one-way flows (`conntrack.max_half_open`).
    pub half_open: u32,
}

/// Both objects, loaded.
pub struct Objects {
    xdp: Ebpf,
    tc: Ebpf,
}

/// Names of the programs.
pub mod program {
    use fsm_common::maps::slow;

    /// XDP on uplinks.
    pub const XDP: &str = "fsm_xdp";
    /// TC, from the device.
    pub const TC_INGRESS: &str = "fsm_tc_ingress";
    /// TC, to the device.
    pub const TC_EGRESS: &str = "fsm_tc_egress";
    /// SO_ORIGINAL_DST.
    pub const ORIGIN: &str = "fsm_origin";
    /// Judges for TC, at their slots of `fsm_prog`.
    pub const TC_SLOW: [(&str, u32); 15] = [
        ("fsm_tc_in4", slow::INGRESS4),
        ("fsm_tc_in6", slow::INGRESS6),
        ("fsm_tc_out4", slow::EGRESS4),
        ("fsm_tc_out6", slow::EGRESS6),
        ("fsm_tc_icmp4", slow::ICMP4),
        ("fsm_tc_icmp6", slow::ICMP6),
        ("fsm_tc_known4", slow::KNOWN4),
        ("fsm_tc_known6", slow::KNOWN6),
        ("fsm_tc_half4", slow::HALF4),
        ("fsm_tc_half6", slow::HALF6),
        ("fsm_tc_ended4", slow::ENDED4),
        ("fsm_tc_ended6", slow::ENDED6),
        ("fsm_tc_finish4", slow::FINISH4),
        ("fsm_tc_finish6", slow::FINISH6),
        ("fsm_tc_judged", slow::JUDGED),
    ];
    /// Judges for XDP, at their slots of `fsm_prog_xdp`.
    pub const XDP_SLOW: [(&str, u32); 8] = [
        ("fsm_xdp4", slow::XDP4),
        ("fsm_xdp6", slow::XDP6),
        ("fsm_xdp_known4", slow::XDP_KNOWN4),
        ("fsm_xdp_known6", slow::XDP_KNOWN6),
        ("fsm_xdp_cookie4", slow::XDP_COOKIE4),
        ("fsm_xdp_cookie6", slow::XDP_COOKIE6),
        ("fsm_xdp_inspect4", slow::XDP_INSPECT4),
        ("fsm_xdp_inspect6", slow::XDP_INSPECT6),
    ];
    /// XDP on `dpi1`, before the workers' sockets.
    pub const DPI_RX: &str = "fsm_dpi_rx";
    /// TC on `dpi0`, to the workers.
    pub const DPI_TX: &str = "fsm_dpi_tx";
    /// TC on `dpi0`, from the workers.
    pub const DPI_BACK: &str = "fsm_dpi_back";
    /// Feature probe.
    pub const PROBE: &str = "fsm_probe_csum";
    /// Those that take longest to verify, the longest first.
    pub const DEAREST: [&str; 4] = [
        "fsm_tc_half6",
        "fsm_tc_half4",
        "fsm_tc_known6",
        "fsm_tc_known4",
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = &'static str> {
        let slow = TC_SLOW.iter().chain(&XDP_SLOW).map(|(name, _)| *name);
        [
            XDP, DPI_RX, TC_INGRESS, TC_EGRESS, DPI_TX, DPI_BACK, PROBE, ORIGIN,
        ]
        .into_iter()
        .chain(slow)
    }
}

impl Objects {
    /// Loads both over the maps pinned in `dir`; maps that are not there yet are made and pinned.
    ///
    /// # Errors
    /// See [`LoadError`]; nothing is attached by then.
    pub fn load(dir: &Path, sizes: Sizes) -> Result<Self, LoadError> {
        std::fs::create_dir_all(dir).map_err(|source| LoadError::Folder {
            path: dir.into(),
            source,
        })?;
        for spec in MAPS {
            check_pin(dir, spec)?;
        }
        let mut xdp = load_object("fsm-xdp", XDP_OBJECT, dir, sizes)?;
        let mut tc = load_object("fsm-tc", TC_OBJECT, dir, sizes)?;
        verify(&mut [&mut xdp, &mut tc])?;
        let mut objects = Self { xdp, tc };
        objects.fill_tail_calls(dir)?;
        Ok(objects)
    }

    /// Puts the judges where the fast programs call them. Both arrays are pinned: an array empties itself
    /// when its last holder goes.
    fn fill_tail_calls(&mut self, dir: &Path) -> Result<(), LoadError> {
        for (map, programs) in [
            (name::FSM_PROG_XDP, program::XDP_SLOW.as_slice()),
            (name::FSM_PROG, program::TC_SLOW.as_slice()),
        ] {
            let pin = |source| {
                LoadError::Pin(PinError::Map {
                    path: dir.join(map),
                    source,
                })
            };
            let array = MapData::from_pin(dir.join(map)).map_err(pin)?;
            let mut array = ProgramArray::try_from(Map::ProgramArray(array)).map_err(pin)?;
            for &(name, slot) in programs {
                let fail = |source| LoadError::Program {
                    program: name,
                    source: Box::new(source),
                };
                array
                    .set(slot, self.fd(name).map_err(fail)?, 0)
                    .map_err(pin)?;
            }
        }
        Ok(())
    }

    /// A loaded XDP program.
    ///
    /// # Panics
    /// Never for the names in [`program`]: [`Self::load`] has found them.
    pub fn xdp(&mut self, name: &str) -> &mut Xdp {
        find(&mut self.xdp, name)
    }

    /// A loaded TC program; as [`Self::xdp`].
    pub fn tc(&mut self, name: &str) -> &mut SchedClassifier {
        find(&mut self.tc, name)
    }

    /// The cgroup program.
    pub fn origin(&mut self) -> &mut CgroupSockopt {
        find(&mut self.tc, program::ORIGIN)
    }

    /// File descriptor of any program.
    ///
    /// # Errors
    /// Never after [`Self::load`].
    pub fn fd(&self, name: &str) -> Result<&ProgramFd, ProgramError> {
        let program = self.tc.program(name).or_else(|| self.xdp.program(name));
        program.ok_or(ProgramError::NotLoaded)?.fd()
    }

    /// `BPF_F_IPV6` where `bpf_l4_csum_replace` knows it, else 0.
    ///
    /// # Errors
    /// What the kernel said to the test run.
    pub fn csum_ipv6_flag(&mut self) -> Result<u32, ProgramError> {
        const BPF_F_IPV6: u32 = 1 << 7;
        let frame = [0u8; 64];
        let probe = self.tc(program::PROBE);
        let result = probe.test_run(TestRunOptions {
            data_in: Some(&frame),
            ..TestRunOptions::new()
        })?;
        Ok(if result.return_value == 1 {
            BPF_F_IPV6
        } else {
            0
        })
    }
}

fn find<'a, T>(object: &'a mut Ebpf, name: &str) -> &'a mut T
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = object.program_mut(name).expect("a name from `program`");
    program
        .try_into()
        .expect("of the kind that it was loaded as")
}

/// Has the kernel verify all programs, as many at a time as there are CPUs: it takes a second for the largest.
fn verify(objects: &mut [&mut Ebpf]) -> Result<(), LoadError> {
    let mut programs: Vec<(&'static str, &mut Program)> = Vec::new();
    for (name, program) in objects.iter_mut().flat_map(|object| object.programs_mut()) {
        let known = program::all().find(|known| *known == name);
        programs.push((known.unwrap_or("of no known name"), program));
    }
    for name in program::all() {
        if !programs.iter().any(|(there, _)| *there == name) {
            let source = Box::new(ProgramError::NotLoaded);
            return Err(LoadError::Program {
                program: name,
                source,
            });
        }
    }
    // Taken from the end: the longest first.
    programs.sort_by_key(|(name, _)| program::DEAREST.iter().rev().position(|n| n == name));
    let queue = Mutex::new(programs);
    let work = || -> Result<(), LoadError> {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((name, program)) = next else {
                return Ok(());
            };
            load(program).map_err(|source| LoadError::Program {
                program: name,
                source: Box::new(source),
            })?;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running
            .into_iter()
            .try_for_each(|thread| thread.join().expect("it does not panic"))
    })
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        _ => Err(ProgramError::NotLoaded),
    }
}

fn load_object(
    object: &'static str,
    bytes: &[u8],
    dir: &Path,
    sizes: Sizes,
) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    for spec in MAPS {
        loader.map_pin_path(spec.name, dir.join(spec.name));
    }
    let entries = sizes.flows.saturating_mul(2);
    for flows in [name::FSM_XFLOW, name::FSM_XFLOW6] {
        loader.map_max_entries(flows, entries);
    }
    loader.map_max_entries(name::FSM_XOPT, sizes.flows);
    for flows in [name::FSM_HALF, name::FSM_HALF6] {
        loader.map_max_entries(flows, sizes.half_open.saturating_mul(2));
    }
    loader.map_max_entries(name::FSM_XOPT_HALF, sizes.half_open);
    loader.load(bytes).map_err(|source| LoadError::Object {
        object,
        source: Box::new(source),
    })
}
