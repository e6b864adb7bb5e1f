// One bank of operand memory: a write port, a read port and two registers behind the memory.
`default_nettype none
module operand_bank #(
    parameter DEPTH = 2048
) (
    input  wire                     clk,
    input  wire                     write,
    input  wire [$clog2(DEPTH)-1:0] write_at,
    input  wire               [7:0] write_data,
    input  wire [$clog2(DEPTH)-1:0] read_at,
    output reg                [7:0] read_data
);
    (* no_rw_check *) reg [7:0] cells[0:DEPTH-1];  // never written while it is read
    reg [7:0] fetched;  // inside the memory block
    reg [7:0] beside;  // next to it: a block takes long to answer

    always @(posedge clk) begin
        if (write) cells[write_at] <= write_data;
        fetched   <= cells[read_at];
        beside    <= fetched;
        read_data <= beside;
    end
endmodule
