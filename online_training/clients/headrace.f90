!> Headrace's client for Fortran 2008: a thin module over headrace.c, whose header explains the calls.
!>
!> Arrays are passed as they are, also sections without their ghost layers: axis 1 of the array is axis x of the field.
!> `field` counts from 1, `offset` and `step` from 0.
module headrace
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: real32, real64
  implicit none
  private
  public :: headrace_study, headrace_open, headrace_next, headrace_parameter, headrace_put, headrace_send
  public :: headrace_cells, headrace_put_cells, headrace_put_address
  public :: headrace_end, headrace_close, headrace_last_error, headrace_num_steps, headrace_bytes_sent
  public :: headrace_simulation, headrace_active, headrace_lost, headrace_while_waiting

  integer(c_int), parameter, public :: headrace_float32 = 1, headrace_float64 = 2, headrace_int32 = 3
  integer(c_int), parameter, public :: headrace_int64 = 4, headrace_uint8 = 5
  integer(c_int), parameter, public :: headrace_continue = 0, headrace_stop = 1, headrace_slow = 2
  integer(c_int), parameter, public :: headrace_wrong_use = -1, headrace_refused = -2
  integer(c_int), parameter, public :: headrace_unreachable = -3, headrace_system = -4
  integer, parameter :: max_ndim = 4

  !> A rank's handle of its study.
  type :: headrace_study
    private
    type(c_ptr) :: handle = c_null_ptr
  end type headrace_study

  type, bind(c) :: c_field
    type(c_ptr) :: name
    integer(c_int) :: ndim
    integer(c_int64_t) :: shape(max_ndim)
  end type c_field

  !> Make this rank's handle: fields of one shape, or of a shape each.
  interface headrace_open
    module procedure open_alike, open_each
  end interface headrace_open

  !> Copy the values of this rank's cells, in the order in which headrace_cells named them.
  interface headrace_put_cells
    module procedure put_cells_real32, put_cells_real64
  end interface headrace_put_cells

  !> Copy a block of a field for the next headrace_send.
  interface headrace_put
    module procedure put_real32_1, put_real32_2, put_real32_3, put_real64_1, put_real64_2, put_real64_3
  end interface headrace_put

  interface
    function c_open(fields, num_fields, type, rank, ranks) bind(c, name="headrace_open") result(handle)
      import :: c_ptr, c_int, c_field
      type(c_field), intent(in) :: fields(*)
      integer(c_int), value :: num_fields, type, rank, ranks
      type(c_ptr) :: handle
    end function c_open
    subroutine c_while_waiting(handle, function, argument) bind(c, name="headrace_while_waiting")
      import :: c_ptr, c_funptr
      type(c_ptr), value :: handle, argument
      type(c_funptr), value :: function
    end subroutine c_while_waiting
    function c_next(handle) bind(c, name="headrace_next") result(code)
      import :: c_ptr, c_int
      type(c_ptr), value :: handle
      integer(c_int) :: code
    end function c_next
    function c_parameter(handle, name, number) bind(c, name="headrace_parameter") result(code)
      import :: c_ptr, c_int, c_char, c_double
      type(c_ptr), value :: handle
      character(kind=c_char), intent(in) :: name(*)
      real(c_double), intent(inout) :: number
      integer(c_int) :: code
    end function c_parameter
    function c_put(handle, field, type, values, strides, offset, shape) bind(c, name="headrace_put") result(code)
      import :: c_ptr, c_int, c_int64_t
      type(c_ptr), value :: handle, values
      integer(c_int), value :: field, type
      integer(c_int64_t), intent(in) :: strides(*), offset(*), shape(*)
      integer(c_int) :: code
    end function c_put
    function c_cells(handle, cells, number) bind(c, name="headrace_cells") result(code)
      import :: c_ptr, c_int, c_int64_t
      type(c_ptr), value :: handle
      integer(c_int64_t), intent(in) :: cells(*)
      integer(c_int64_t), value :: number
      integer(c_int) :: code
    end function c_cells
    function c_put_cells(handle, field, type, values, stride) bind(c, name="headrace_put_cells") result(code)
      import :: c_ptr, c_int, c_int64_t
      type(c_ptr), value :: handle, values
      integer(c_int), value :: field, type
      integer(c_int64_t), value :: stride
      integer(c_int) :: code
    end function c_put_cells
    function c_send(handle, step, time) bind(c, name="headrace_send") result(code)
      import :: c_ptr, c_int, c_int64_t, c_double
      type(c_ptr), value :: handle
      integer(c_int64_t), value :: step
      real(c_double), value :: time
      integer(c_int) :: code
    end function c_send
    function c_end(handle, failure) bind(c, name="headrace_end") result(code)
      import :: c_ptr, c_int
      type(c_ptr), value :: handle, failure
      integer(c_int) :: code
    end function c_end
    subroutine c_close(handle) bind(c, name="headrace_close")
      import :: c_ptr
      type(c_ptr), value :: handle
    end subroutine c_close
    function c_last_error(handle) bind(c, name="headrace_last_error") result(text)
      import :: c_ptr
      type(c_ptr), value :: handle
      type(c_ptr) :: text
    end function c_last_error
    function c_num_steps(handle) bind(c, name="headrace_num_steps") result(number)
      import :: c_ptr, c_int64_t
      type(c_ptr), value :: handle
      integer(c_int64_t) :: number
    end function c_num_steps
    function c_simulation(handle) bind(c, name="headrace_simulation") result(number)
      import :: c_ptr, c_int64_t
      type(c_ptr), value :: handle
      integer(c_int64_t) :: number
    end function c_simulation
    function c_bytes_sent(handle) bind(c, name="headrace_bytes_sent") result(number)
      import :: c_ptr, c_int64_t
      type(c_ptr), value :: handle
      integer(c_int64_t) :: number
    end function c_bytes_sent
    function c_active(handle) bind(c, name="headrace_active") result(number)
      import :: c_ptr, c_int
      type(c_ptr), value :: handle
      integer(c_int) :: number
    end function c_active
    function c_lost(handle) bind(c, name="headrace_lost") result(number)
      import :: c_ptr, c_int
      type(c_ptr), value :: handle
      integer(c_int) :: number
    end function c_lost
    function c_strlen(text) bind(c, name="strlen") result(length)
      import :: c_ptr, c_size_t
      type(c_ptr), value :: text
      integer(c_size_t) :: length
    end function c_strlen
  end interface

contains

  !> Make this rank's handle for fields that all have one shape; ask headrace_last_error afterwards. Collective.
  subroutine open_alike(study, names, shape, type, rank, ranks)
    type(headrace_study), intent(out) :: study
    character(len=*), intent(in) :: names(:)
    integer, intent(in) :: shape(:)
    integer(c_int), intent(in) :: type
    integer, intent(in) :: rank, ranks
    call open_each(study, names, spread(shape, 2, size(names)), type, rank, ranks)
  end subroutine open_alike

  !> Make this rank's handle for fields of shapes(:, i) each, filled up with zeros where one has fewer axes. Collective.
  subroutine open_each(study, names, shapes, type, rank, ranks)
    type(headrace_study), intent(out) :: study
    character(len=*), intent(in) :: names(:)
    integer, intent(in) :: shapes(:, :)
    integer(c_int), intent(in) :: type
    integer, intent(in) :: rank, ranks
    character(len=len(names)+1, kind=c_char), target :: texts(size(names))
    type(c_field) :: fields(size(names))
    integer :: i
    do i = 1, size(names)
      texts(i) = trim(names(i)) // c_null_char
      fields(i)%name = c_loc(texts(i))
      fields(i)%ndim = count(shapes(:, i) > 0)
      fields(i)%shape = 0
      fields(i)%shape(:min(size(shapes, 1), max_ndim)) = shapes(:min(size(shapes, 1), max_ndim), i)
    end do
    study%handle = c_open(fields, size(names, kind=c_int), type, int(rank, c_int), int(ranks, c_int))
  end subroutine open_each

  !> Have a subroutine called now and then while a call waits for the study: under MPI one that calls MPI_Iprobe, so that
  !> this rank's messages reach others meanwhile (headrace.h). It takes one unused argument by value.
  subroutine headrace_while_waiting(study, procedure)
    type(headrace_study), intent(in) :: study
    interface
      subroutine procedure(unused) bind(c)
        import :: c_ptr
        type(c_ptr), value :: unused
      end subroutine procedure
    end interface
    call c_while_waiting(study%handle, c_funloc(procedure), c_null_ptr)
  end subroutine headrace_while_waiting

  !> Take the next simulation: 1 there is one, 0 none is left, negative an error. Collective.
  integer function headrace_next(study) result(code)
    type(headrace_study), intent(in) :: study
    code = c_next(study%handle)
  end function headrace_next

  !> Read a parameter of the simulation: 0, or headrace_wrong_use where there is none and the value is left alone.
  integer function headrace_parameter(study, name, number) result(code)
    type(headrace_study), intent(in) :: study
    character(len=*), intent(in) :: name
    real(real64), intent(inout) :: number
    code = c_parameter(study%handle, trim(name) // c_null_char, number)
  end function headrace_parameter

  !> Send the step whose fields were all put; the word of the study to the step before, or an error. Collective.
  integer function headrace_send(study, step, time) result(code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: step
    real(real64), intent(in) :: time
    code = c_send(study%handle, int(step, c_int64_t), time)
  end function headrace_send

  !> End the simulation, as failed where a reason is given. Collective where none is.
  integer function headrace_end(study, failure) result(code)
    type(headrace_study), intent(in) :: study
    character(len=*), intent(in), optional :: failure
    character(len=:, kind=c_char), allocatable, target :: text
    if (present(failure)) then
      text = trim(failure) // c_null_char
      code = c_end(study%handle, c_loc(text))
    else
      code = c_end(study%handle, c_null_ptr)
    end if
  end function headrace_end

  !> Leave the study and free the handle.
  subroutine headrace_close(study)
    type(headrace_study), intent(inout) :: study
    call c_close(study%handle)
    study%handle = c_null_ptr
  end subroutine headrace_close

  !> The last error in words; empty where there was none.
  function headrace_last_error(study) result(text)
    type(headrace_study), intent(in) :: study
    character(len=:), allocatable :: text
    character(kind=c_char), pointer :: letters(:)
    type(c_ptr) :: address
    integer :: i
    address = c_last_error(study%handle)
    call c_f_pointer(address, letters, [c_strlen(address)])
    allocate (character(len=size(letters)) :: text)
    do i = 1, size(letters)
      text(i:i) = letters(i)
    end do
  end function headrace_last_error

  !> Number of snapshots that the study expects; -1 without a study.
  integer function headrace_num_steps(study) result(number)
    type(headrace_study), intent(in) :: study
    number = int(c_num_steps(study%handle))
  end function headrace_num_steps

  !> The simulation's number.
  integer(c_int64_t) function headrace_simulation(study) result(number)
    type(headrace_study), intent(in) :: study
    number = c_simulation(study%handle)
  end function headrace_simulation

  !> Payload bytes of this simulation sent by this rank.
  integer(c_int64_t) function headrace_bytes_sent(study) result(number)
    type(headrace_study), intent(in) :: study
    number = c_bytes_sent(study%handle)
  end function headrace_bytes_sent

  !> Whether there is a study.
  logical function headrace_active(study) result(answer)
    type(headrace_study), intent(in) :: study
    answer = c_active(study%handle) /= 0
  end function headrace_active

  !> Whether the study did not keep this simulation and will run it again.
  logical function headrace_lost(study) result(answer)
    type(headrace_study), intent(in) :: study
    answer = c_lost(study%handle) /= 0
  end function headrace_lost

  !> Distance of two elements in units of the elements' size; 0 where there is only one.
  integer(c_int64_t) function distance(here, there, bytes) result(elements)
    type(c_ptr), intent(in) :: here, there
    integer, intent(in) :: bytes
    elements = (transfer(there, 0_c_intptr_t) - transfer(here, 0_c_intptr_t)) / bytes
  end function distance

  !> Name the cells that this rank owns, where they are no box: x * ny + y (and so on) with x, y from 0. Sent once.
  integer function headrace_cells(study, cells) result(code)
    type(headrace_study), intent(in) :: study
    integer(c_int64_t), intent(in) :: cells(:)
    code = c_cells(study%handle, cells, size(cells, kind=c_int64_t))
  end function headrace_cells

  integer function put_cells_real32(study, field, values) result(code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: field
    real(real32), intent(in), target, contiguous :: values(:)
    code = c_put_cells(study%handle, int(field - 1, c_int), headrace_float32, c_loc(values), 1_c_int64_t)
  end function put_cells_real32

  integer function put_cells_real64(study, field, values) result(code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: field
    real(real64), intent(in), target, contiguous :: values(:)
    code = c_put_cells(study%handle, int(field - 1, c_int), headrace_float64, c_loc(values), 1_c_int64_t)
  end function put_cells_real64

  !> headrace_put for a contiguous array of any type with one to four axes, by its address: c_loc(values).
  integer function headrace_put_address(study, field, type, address, shape, offset) result(code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: field, shape(:), offset(:)
    integer(c_int), intent(in) :: type
    type(c_ptr), intent(in) :: address
    integer(c_int64_t) :: strides(size(shape))
    integer :: i
    strides = [(product(int(shape(:i - 1), c_int64_t)), i = 1, size(shape))]
    code = c_put(study%handle, int(field - 1, c_int), type, address, strides, int(offset, c_int64_t), &
                 int(shape, c_int64_t))
  end function headrace_put_address

  integer function put_real32_1(study, field, values, offset) result(code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: field, offset(1)
    real(real32), intent(in), target :: values(:)
    integer(c_int64_t) :: strides(1)
    type(c_ptr) :: first
    strides = 0
    first = c_null_ptr
    if (size(values) > 0) then
      first = c_loc(values(1))
      strides(1) = distance(c_loc(values(1)), c_loc(values(min(2, size(values, 1)))), 4)
    end if
    code = c_put(study%handle, int(field - 1, c_int), headrace_float32, first, strides, int(offset, c_int64_t), &
                 shape(values, kind=c_int64_t))
  end function put_real32_1

  integer function put_real32_2(study, field, values, offset) result(code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: field, offset(2)
    real(real32), intent(in), target :: values(:, :)
    integer(c_int64_t) :: strides(2)
    type(c_ptr) :: first
    strides = 0
    first = c_null_ptr
    if (size(values) > 0) then
      first = c_loc(values(1, 1))
      strides(1) = distance(c_loc(values(1, 1)), c_loc(values(min(2, size(values, 1)), 1)), 4)
      strides(2) = distance(c_loc(values(1, 1)), c_loc(values(1, min(2, size(values, 2)))), 4)
    end if
    code = c_put(study%handle, int(field - 1, c_int), headrace_float32, first, strides, int(offset, c_int64_t), &
                 shape(values, kind=c_int64_t))
  end function put_real32_2

  integer function put_real32_3(study, field, values, offset) result(code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: field, offset(3)
    real(real32), intent(in), target :: values(:, :, :)
    integer(c_int64_t) :: strides(3)
    type(c_ptr) :: first
    strides = 0
    first = c_null_ptr
    if (size(values) > 0) then
      first = c_loc(values(1, 1, 1))
      strides(1) = distance(c_loc(values(1, 1, 1)), c_loc(values(min(2, size(values, 1)), 1, 1)), 4)
      strides(2) = distance(c_loc(values(1, 1, 1)), c_loc(values(1, min(2, size(values, 2)), 1)), 4)
      strides(3) = distance(c_loc(values(1, 1, 1)), c_loc(values(1, 1, min(2, size(values, 3)))), 4)
    end if
    code = c_put(study%handle, int(field - 1, c_int), headrace_float32, first, strides, int(offset, c_int64_t), &
                 shape(values, kind=c_int64_t))
  end function put_real32_3

  integer function put_real64_1(study, field, values, offset) result(code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: field, offset(1)
    real(real64), intent(in), target :: values(:)
    integer(c_int64_t) :: strides(1)
    type(c_ptr) :: first
    strides = 0
    first = c_null_ptr
    if (size(values) > 0) then
      first = c_loc(values(1))
      strides(1) = distance(c_loc(values(1)), c_loc(values(min(2, size(values, 1)))), 8)
    end if
    code = c_put(study%handle, int(field - 1, c_int), headrace_float64, first, strides, int(offset, c_int64_t), &
                 shape(values, kind=c_int64_t))
  end function put_real64_1

  integer function put_real64_2(study, field, values, offset) result(code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: field, offset(2)
    real(real64), intent(in), target :: values(:, :)
    integer(c_int64_t) :: strides(2)
    type(c_ptr) :: first
    strides = 0
    first = c_null_ptr
    if (size(values) > 0) then
      first = c_loc(values(1, 1))
      strides(1) = distance(c_loc(values(1, 1)), c_loc(values(min(2, size(values, 1)), 1)), 8)
      strides(2) = distance(c_loc(values(1, 1)), c_loc(values(1, min(2, size(values, 2)))), 8)
    end if
    code = c_put(study%handle, int(field - 1, c_int), headrace_float64, first, strides, int(offset, c_int64_t), &
                 shape(values, kind=c_int64_t))
  end function put_real64_2

  integer function put_real64_3(study, field, values, offset) result(code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: field, offset(3)
    real(real64), intent(in), target :: values(:, :, :)
    integer(c_int64_t) :: strides(3)
    type(c_ptr) :: first
    strides = 0
    first = c_null_ptr
    if (size(values) > 0) then
      first = c_loc(values(1, 1, 1))
      strides(1) = distance(c_loc(values(1, 1, 1)), c_loc(values(min(2, size(values, 1)), 1, 1)), 8)
      strides(2) = distance(c_loc(values(1, 1, 1)), c_loc(values(1, min(2, size(values, 2)), 1)), 8)
      strides(3) = distance(c_loc(values(1, 1, 1)), c_loc(values(1, 1, min(2, size(values, 3)))), 8)
    end if
    code = c_put(study%handle, int(field - 1, c_int), headrace_float64, first, strides, int(offset, c_int64_t), &
                 shape(values, kind=c_int64_t))
  end function put_real64_3

end module headrace
